#include "moe/experts.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "base/check.h"
#include "moe/losses.h"
#include "moe/philox.h"
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

Masks SelectRandom(int64_t experts, int64_t layers, int64_t channels, int64_t k, uint64_t seed) {
  Masks masks(experts, layers, channels);
  for (int64_t at = 0; at < experts * layers; ++at) {
    std::vector<double> draws;
    for (int64_t c = 0; c < channels; ++c) {
      draws.push_back(static_cast<double>(Random64(seed, Use::kRandomMasks, static_cast<uint32_t>(at / experts),
                                                   static_cast<uint32_t>(at % experts), static_cast<uint32_t>(c))));
    }
    masks.SetExpert(at / experts, at % experts, TopChannels(draws, k));
  }
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

namespace {

constexpr int64_t kRowsAtOnce = 8192;

// Averages units of more than one token: [units, T].
at::Tensor UnitMeans(std::span<const int64_t> lengths, int64_t tokens, const at::TensorOptions& options) {
  at::Tensor means = at::zeros({static_cast<int64_t>(lengths.size()), tokens}, at::kFloat);
  int64_t begin = 0;
  for (size_t u = 0; u < lengths.size(); ++u) {
    means[static_cast<int64_t>(u)].slice(0, begin, begin + lengths[u]).fill_(1.0 / static_cast<double>(lengths[u]));
    begin += lengths[u];
  }
  OUTRIDER_CHECK(begin == tokens, "units of ", begin, " tokens for ", tokens);
  return means.to(options.device());
}

class Lloyd {
 public:
  Lloyd(const MassSample& sample, const CoverageOptions& options)
      : sample_(sample), options_(options), masks_(options.experts, sample.layers(), sample.channels()) {}

  CoverageExperts Run() {
    for (int64_t l = 0; l < sample_.layers(); ++l) sinks_.push_back(SinksOf(l));
    Start();
    CoverageExperts out;
    out.coverage.push_back(Assign());
    for (int64_t round = 0; round < options_.rounds; ++round) {
      out.reseeded += Reseed();
      Update();
      out.coverage.push_back(Assign());
    }
    out.masks = std::move(masks_);
    out.ids = std::move(ids_);
    return out;
  }

 private:
  int64_t Keep(int64_t layer) const {
    return options_.keep_per_layer.empty() ? options_.keep : options_.keep_per_layer.at(static_cast<size_t>(layer));
  }

  std::vector<int64_t> SinksOf(int64_t layer) const {
    const std::vector<double> peaks = sample_.Peaks(layer);
    std::vector<int64_t> sinks = TopChannels(peaks, Keep(layer) / 4);
    const double share = options_.sink_factor / static_cast<double>(sample_.channels());
    std::erase_if(sinks, [&](int64_t c) { return peaks[static_cast<size_t>(c)] <= share; });
    return sinks;
  }

  // The expert's channels by score [L][D]; sinks come before all others.
  void Choose(int64_t expert, std::vector<std::vector<double>> scores) {
    std::vector<double> all;
    for (int64_t l = 0; l < sample_.layers(); ++l) {
      std::vector<double>& layer = scores[static_cast<size_t>(l)];
      for (const int64_t c : sinks_[static_cast<size_t>(l)]) {
        layer[static_cast<size_t>(c)] = std::numeric_limits<double>::infinity();
      }
      if (!options_.across_layers) masks_.SetExpert(l, expert, TopChannels(layer, Keep(l)));
      all.insert(all.end(), layer.begin(), layer.end());
    }
    if (!options_.across_layers) return;
    const auto kept = TopOverall(all, sample_.layers(), sample_.layers() * options_.keep);
    for (int64_t l = 0; l < sample_.layers(); ++l) masks_.SetExpert(l, expert, kept[static_cast<size_t>(l)]);
  }

  void Start() {
    std::set<int64_t> taken;
    for (uint32_t draw = 0; static_cast<int64_t>(taken.size()) < options_.experts; ++draw) {
      const uint64_t bits = Random64(options_.seed, Use::kCoverageStart, 0, 0, draw);
      const auto unit = static_cast<int64_t>(Below(bits, static_cast<uint64_t>(sample_.units())));
      const auto expert = static_cast<int64_t>(taken.size());
      if (!taken.insert(unit).second) continue;
      std::vector<std::vector<double>> scores;
      for (int64_t l = 0; l < sample_.layers(); ++l) scores.push_back(sample_.Row(l, unit));
      Choose(expert, std::move(scores));
    }
  }

  // Best expert of every unit; returns the mean share of mass that it keeps, per token.
  double Assign() {
    std::vector<at::Tensor> matrices;
    for (int64_t l = 0; l < sample_.layers(); ++l) {
      matrices.push_back(MaskMatrix(masks_, l, at::kFloat, sample_.device()).t());
    }
    ids_.clear();
    kept_.clear();
    for (int64_t begin = 0; begin < sample_.units(); begin += kRowsAtOnce) {
      const int64_t end = std::min(begin + kRowsAtOnce, sample_.units());
      at::Tensor score;
      for (int64_t l = 0; l < sample_.layers(); ++l) {
        const at::Tensor one = sample_.Rows(l, begin, end).matmul(matrices[static_cast<size_t>(l)]);
        score = score.defined() ? score + one : one;
      }
      score = (score / static_cast<double>(sample_.layers())).to(at::kCPU).contiguous();
      for (int64_t u = 0; u < end - begin; ++u) {
        const float* row = score.const_data_ptr<float>() + u * options_.experts;
        const float* best = std::max_element(row, row + options_.experts);
        ids_.push_back(best - row);
        kept_.push_back(*best);
      }
    }
    double sum = 0;
    for (size_t u = 0; u < kept_.size(); ++u) sum += kept_[u] * static_cast<double>(sample_.tokens()[u]);
    return sum / static_cast<double>(std::accumulate(sample_.tokens().begin(), sample_.tokens().end(), int64_t{0}));
  }

  // Gives every expert without units the unit that is served worst, taken from an expert that keeps others.
  int64_t Reseed() {
    std::vector<int64_t> members(static_cast<size_t>(options_.experts), 0);
    for (const int64_t id : ids_) ++members[static_cast<size_t>(id)];
    int64_t reseeded = 0;
    for (size_t i = 0; i < members.size(); ++i) {
      if (members[i] > 0) continue;
      size_t worst = ids_.size();
      for (size_t u = 0; u < ids_.size(); ++u) {
        if (members[static_cast<size_t>(ids_[u])] < 2) continue;
        if (worst == ids_.size() || kept_[u] < kept_[worst]) worst = u;
      }
      --members[static_cast<size_t>(ids_[worst])];
      ids_[worst] = static_cast<int64_t>(i);
      members[i] = 1;
      ++reseeded;
    }
    return reseeded;
  }

  void Update() {
    const int64_t units = sample_.units();
    at::Tensor weight = at::zeros({options_.experts, units}, at::kFloat);
    auto cells = weight.accessor<float, 2>();
    for (int64_t u = 0; u < units; ++u) {
      cells[ids_[static_cast<size_t>(u)]][u] = static_cast<float>(sample_.tokens()[static_cast<size_t>(u)]);
    }
    weight = weight.to(sample_.device());
    std::vector<std::vector<std::vector<double>>> scores(static_cast<size_t>(options_.experts));
    for (int64_t l = 0; l < sample_.layers(); ++l) {
      at::Tensor sum;
      for (int64_t begin = 0; begin < units; begin += kRowsAtOnce) {
        const int64_t end = std::min(begin + kRowsAtOnce, units);
        const at::Tensor part = weight.slice(1, begin, end).matmul(sample_.Rows(l, begin, end));
        sum = sum.defined() ? sum + part : part;
      }
      for (int64_t i = 0; i < options_.experts; ++i) scores[static_cast<size_t>(i)].push_back(ToVector(sum[i]));
    }
    for (int64_t i = 0; i < options_.experts; ++i) Choose(i, std::move(scores[static_cast<size_t>(i)]));
  }

  const MassSample& sample_;
  CoverageOptions options_;
  Masks masks_;
  std::vector<std::vector<int64_t>> sinks_;  // per layer
  std::vector<int64_t> ids_;
  std::vector<double> kept_;
};

}  // namespace

MassSample::MassSample(int64_t layers, int64_t channels, int64_t units, at::Device device)
    : channels_(channels), capacity_(units), filled_(static_cast<size_t>(layers), 0) {
  for (int64_t l = 0; l < layers; ++l) {
    peaks_.push_back(at::zeros({channels}, at::TensorOptions().dtype(at::kFloat).device(device)));
    mass_.push_back(at::zeros({units, channels}, at::TensorOptions().dtype(at::kHalf).device(device)));
  }
}

void MassSample::Add(int64_t layer, const at::Tensor& h, const at::Tensor& column_norms,
                     std::span<const int64_t> lengths) {
  const at::NoGradGuard no_grad;
  AddMass(layer, ActivationMass(h, column_norms), lengths);
}

void MassSample::AddMass(int64_t layer, at::Tensor mass, std::span<const int64_t> lengths) {
  const at::NoGradGuard no_grad;
  constexpr double kHalfMax = 65504;
  const auto l = static_cast<size_t>(layer);
  const auto count = static_cast<int64_t>(lengths.size());
  OUTRIDER_CHECK(filled_.at(l) + count <= capacity_, "room for ", capacity_, " units");
  const int64_t tokens = mass.size(0);
  peaks_[l] = at::maximum(peaks_[l], mass.amax(0));
  if (count < tokens) mass = UnitMeans(lengths, tokens, mass.options()).matmul(mass);
  mass = (mass * static_cast<double>(channels_)).clamp_max(kHalfMax);
  mass_[l].slice(0, filled_[l], filled_[l] + count).copy_(mass);
  filled_[l] += count;
  if (l + 1 == mass_.size()) tokens_.insert(tokens_.end(), lengths.begin(), lengths.end());
}

at::Tensor MassSample::Rows(int64_t layer, int64_t begin, int64_t end) const {
  return mass_.at(static_cast<size_t>(layer)).slice(0, begin, end).to(at::kFloat) / static_cast<double>(channels_);
}

std::vector<double> MassSample::Peaks(int64_t layer) const { return ToVector(peaks_.at(static_cast<size_t>(layer))); }

std::vector<double> MassSample::Mean(int64_t layer) const {
  at::Tensor sum;
  for (int64_t begin = 0; begin < units(); begin += kRowsAtOnce) {
    const at::Tensor part = Rows(layer, begin, std::min(begin + kRowsAtOnce, units())).to(at::kDouble).sum(0);
    sum = sum.defined() ? sum + part : part;
  }
  return ToVector(sum / static_cast<double>(units()));
}

std::vector<double> MassSample::Row(int64_t layer, int64_t unit) const { return ToVector(Rows(layer, unit, unit + 1)); }

CoverageExperts FindCoverageExperts(const MassSample& sample, const CoverageOptions& options) {
  OUTRIDER_CHECK(options.keep >= 1 && options.keep <= sample.channels(), options.keep, " of ", sample.channels());
  OUTRIDER_CHECK(sample.units() >= options.experts, options.experts, " experts of ", sample.units(), " units");
  return Lloyd(sample, options).Run();
}

}  // namespace outrider::moe
