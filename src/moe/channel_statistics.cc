#include "moe/channel_statistics.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "base/check.h"
#include "moe/select.h"

namespace outrider::moe {
namespace {

std::vector<double> ToVector(const at::Tensor& values) {
  const at::Tensor flat = values.to(at::kCPU, at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

// Mean over domains of one layer's scores.
std::vector<double> MeanScores(std::span<const ChannelSums> domains, Statistic statistic, int64_t layer,
                               const at::Tensor& down) {
  std::vector<double> mean;
  for (const ChannelSums& domain : domains) {
    const std::vector<double> scores = domain.Scores(statistic, layer, down);
    mean.resize(scores.size(), 0);
    for (size_t c = 0; c < scores.size(); ++c) mean[c] += scores[c] / static_cast<double>(domains.size());
  }
  return mean;
}

}  // namespace

ChannelSums::ChannelSums(int64_t layers, int64_t channels, at::Device device)
    : tokens_(static_cast<size_t>(layers), 0) {
  const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
  for (int64_t l = 0; l < layers; ++l) {
    absolute_.push_back(at::zeros({channels}, options));
    sum_.push_back(at::zeros({channels}, options));
    square_.push_back(at::zeros({channels}, options));
  }
}

void ChannelSums::Add(int64_t layer, const at::Tensor& h, int64_t chunk) {
  const at::NoGradGuard no_grad;
  OUTRIDER_CHECK(h.size(0) % chunk == 0, h.size(0), " tokens in chunks of ", chunk);
  const auto l = static_cast<size_t>(layer);
  for (int64_t begin = 0; begin < h.size(0); begin += chunk) {
    const at::Tensor part = h.slice(0, begin, begin + chunk).to(at::kDouble);
    absolute_.at(l).add_(part.abs().sum(0));
    sum_[l].add_(part.sum(0));
    square_[l].add_(part.square().sum(0));
    tokens_[l] += chunk;
  }
}

at::Tensor ChannelSums::Mean(int64_t layer) const {
  return (sum_.at(static_cast<size_t>(layer)) / static_cast<double>(Tokens(layer))).to(at::kCPU);
}

std::vector<double> ChannelSums::Scores(Statistic statistic, int64_t layer, const at::Tensor& down) const {
  const auto l = static_cast<size_t>(layer);
  const auto tokens = static_cast<double>(Tokens(layer));
  OUTRIDER_CHECK(tokens >= 2, "layer ", layer, " has seen ", tokens, " tokens");
  if (statistic == Statistic::kL1) return ToVector(absolute_[l] / tokens);
  const at::Tensor norms = down.detach().to(at::kDouble).norm(2, 0);
  if (statistic == Statistic::kL1Out) return ToVector(absolute_[l] / tokens * norms);
  const at::Tensor variance = (square_[l] - sum_[l].square() / tokens) / (tokens - 1);
  return ToVector(variance * norms.square());
}

Masks SelectPublished(std::span<const ChannelSums> domains, Statistic statistic, std::span<const at::Tensor> down,
                      int64_t k) {
  Masks masks(static_cast<int64_t>(domains.size()), static_cast<int64_t>(down.size()), down[0].size(1));
  for (int64_t l = 0; l < masks.layers(); ++l) {
    for (int64_t i = 0; i < masks.experts(); ++i) {
      const auto scores = domains[static_cast<size_t>(i)].Scores(statistic, l, down[static_cast<size_t>(l)]);
      masks.SetExpert(l, i, TopChannels(scores, k));
    }
  }
  return masks;
}

Masks SelectStatic(std::span<const ChannelSums> domains, Statistic statistic, std::span<const at::Tensor> down,
                   int64_t k) {
  Masks masks(1, static_cast<int64_t>(down.size()), down[0].size(1));
  std::vector<double> all;
  for (int64_t l = 0; l < masks.layers(); ++l) {
    const std::vector<double> scores = MeanScores(domains, statistic, l, down[static_cast<size_t>(l)]);
    masks.SetExpert(l, 0, TopChannels(scores, k));
    all.insert(all.end(), scores.begin(), scores.end());
  }
  if (statistic != Statistic::kFluctuation) return masks;
  const auto kept = TopAcrossLayers(all, masks.layers(), masks.layers() * k);
  for (int64_t l = 0; l < masks.layers(); ++l) masks.SetExpert(l, 0, kept[static_cast<size_t>(l)]);
  return masks;
}

std::vector<at::Tensor> Compensation(std::span<const ChannelSums> domains, const Masks& masks) {
  OUTRIDER_CHECK(masks.experts() == 1, masks.experts(), " experts");
  std::vector<at::Tensor> fill;
  for (int64_t l = 0; l < masks.layers(); ++l) {
    at::Tensor mean = at::zeros({masks.channels()}, at::kDouble);
    for (const ChannelSums& domain : domains) mean += domain.Mean(l) / static_cast<double>(domains.size());
    auto values = mean.accessor<double, 1>();
    for (const int64_t c : masks.ChannelsOf(l, 0)) values[c] = 0;
    fill.push_back(mean.to(at::kFloat));
  }
  return fill;
}

at::Tensor ColumnNorms(const at::Tensor& down) { return down.detach().to(at::kFloat).norm(2, 0); }

}  // namespace outrider::moe
