#include "moe/carve.h"

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "base/check.h"
#include "moe/balanced_clusters.h"
#include "moe/losses.h"
#include "moe/select.h"

namespace outrider::moe {

base::Result<CarvedSizes> SplitChannels(int64_t channels, int64_t keep, int64_t experts, int64_t top) {
  OUTRIDER_CHECK(top >= 1 && top < experts && keep <= channels, top, " of ", experts, ", ", keep, " of ", channels);
  const int64_t unused = channels - keep, others = experts - top;
  const int64_t size = unused / others;
  // What does not divide evenly makes some experts one channel larger, and the shared part smaller.
  const int64_t larger = unused % others == 0 ? 0 : unused % others + top;
  CarvedSizes sizes{.shared = keep - top * (larger > 0 ? size + 1 : size), .routed = {}};
  if (size < 1 || sizes.shared < 0) {
    return base::Fail("E_OPTION", "experts.keep: found " + std::to_string(keep) + " of " + std::to_string(channels) +
                                      " channels, which " + std::to_string(experts) +
                                      " carved experts cannot share out with carved.top " + std::to_string(top) +
                                      ", expected a share from carved.top / experts.count to below 1");
  }
  for (int64_t i = 0; i < experts; ++i) sizes.routed.push_back(i < larger ? size + 1 : size);
  return sizes;
}

CoActivation::CoActivation(int64_t layers, int64_t channels, at::Device device) : channels_(channels) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  for (int64_t l = 0; l < layers; ++l) {
    together_.push_back(at::zeros({channels, channels}, options));
    mass_.push_back(at::zeros({channels}, options.dtype(at::kDouble)));
    peaks_.push_back(at::zeros({channels}, options));
  }
}

void CoActivation::Add(int64_t layer, const at::Tensor& h, const at::Tensor& column_norms) {
  constexpr double kMost = 8;
  const at::NoGradGuard no_grad;
  const auto l = static_cast<size_t>(layer);
  const at::Tensor mass = ActivationMass(h, column_norms);
  peaks_.at(l) = at::maximum(peaks_.at(l), mass.amax(0));
  mass_[l].add_(mass.to(at::kDouble).sum(0));
  const at::Tensor activity = (mass * static_cast<double>(channels_)).clamp_max(kMost).sqrt();
  together_[l].addmm_(activity.t(), activity);
}

namespace {

std::vector<double> ToDoubles(const at::Tensor& values) {
  const at::Tensor plain = values.to(at::kCPU, at::kDouble).contiguous();
  return {plain.const_data_ptr<double>(), plain.const_data_ptr<double>() + plain.numel()};
}

}  // namespace

std::vector<float> CoActivation::Together(int64_t layer) const {
  const at::Tensor counts = together_.at(static_cast<size_t>(layer)).to(at::kCPU).contiguous();
  return {counts.const_data_ptr<float>(), counts.const_data_ptr<float>() + counts.numel()};
}

std::vector<double> CoActivation::Mass(int64_t layer) const { return ToDoubles(mass_.at(static_cast<size_t>(layer))); }

std::vector<double> CoActivation::Peaks(int64_t layer) const {
  return ToDoubles(peaks_.at(static_cast<size_t>(layer)));
}

namespace {

std::vector<int64_t> SharedChannels(std::vector<double> mass, const std::vector<double>& peaks, int64_t shared,
                                    const CarveOptions& options) {
  const double sink = options.sink_factor / static_cast<double>(mass.size());
  for (const int64_t c : TopChannels(peaks, std::min(shared, options.keep / 4))) {
    const auto at = static_cast<size_t>(c);
    if (peaks[at] > sink) mass[at] = std::numeric_limits<double>::infinity();
  }
  return TopChannels(mass, shared);
}

}  // namespace

base::Result<Carved> Carve(const CoActivation& seen, const CarveOptions& options) {
  const int64_t channels = seen.channels();
  const auto sizes = SplitChannels(channels, options.keep, options.experts, options.top);
  if (!sizes) return tl::unexpected(sizes.error());
  Carved out{.masks = Masks(options.experts, seen.layers(), channels), .representatives = {}};
  for (int64_t l = 0; l < seen.layers(); ++l) {
    const std::vector<float> together = seen.Together(l);
    std::vector<Signature> signatures(static_cast<size_t>(channels), 0);
    for (const int64_t c : SharedChannels(seen.Mass(l), seen.Peaks(l), sizes->shared, options)) {
      signatures[static_cast<size_t>(c)] = out.masks.Full();
    }
    std::vector<int64_t> rest;
    for (int64_t c = 0; c < channels; ++c) {
      if (signatures[static_cast<size_t>(c)] == 0) rest.push_back(c);
    }
    std::vector<float> products;
    for (const int64_t a : rest) {
      for (const int64_t b : rest) products.push_back(together[static_cast<size_t>(a * channels + b)]);
    }
    const Clusters clusters = BalancedClusters(products, sizes->routed, options.rounds);
    for (size_t i = 0; i < rest.size(); ++i) {
      signatures[static_cast<size_t>(rest[i])] = static_cast<Signature>(1U << clusters.of[i]);
    }
    out.masks.SetLayer(l, signatures);
    std::vector<int64_t>& representatives = out.representatives.emplace_back();
    for (const int64_t i : clusters.representatives) representatives.push_back(rest[static_cast<size_t>(i)]);
  }
  return out;
}

RepresentativeFit::RepresentativeFit(const Carved& carved, at::Device device) {
  for (int64_t l = 0; l < carved.masks.layers(); ++l) {
    const at::Tensor masks = MaskMatrix(carved.masks, l, at::kFloat, device);
    own_.push_back(masks - std::get<0>(masks.min(0, true)));
    channels_.push_back(at::tensor(carved.representatives[static_cast<size_t>(l)], at::kLong).to(device));
    sums_.push_back(at::zeros({5, carved.masks.experts()}, masks.options().dtype(at::kDouble)));
  }
}

void RepresentativeFit::Add(int64_t layer, const at::Tensor& h, const at::Tensor& column_norms) {
  const at::NoGradGuard no_grad;
  const auto l = static_cast<size_t>(layer);
  const at::Tensor shares = ActivationMass(h, column_norms).matmul(own_.at(l).t());
  const at::Tensor y = (shares - shares.mean(-1, true)).to(at::kDouble) * kCoverageSharpness;
  const at::Tensor s = h.index_select(1, channels_[l]).abs().to(at::kDouble);
  sums_[l] += at::stack({at::ones_like(s).sum(0), s.sum(0), s.square().sum(0), y.sum(0), (s * y).sum(0)});
}

LayerRouter RepresentativeFit::Router(const std::vector<at::Tensor>& gate, const std::vector<at::Tensor>& up,
                                      int64_t top) const {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> gates, ups, scales, biases;
  for (size_t l = 0; l < sums_.size(); ++l) {
    const at::Tensor n = sums_[l][0], s = sums_[l][1] / n, y = sums_[l][3] / n;
    const at::Tensor variance = sums_[l][2] / n - s * s, covariance = sums_[l][4] / n - s * y;
    const at::Tensor scale = covariance / variance.clamp_min(1e-30);
    gates.push_back(gate.at(l).index_select(0, channels_[l]).to(at::kFloat));
    ups.push_back(up.at(l).index_select(0, channels_[l]).to(at::kFloat));
    scales.push_back(scale.to(at::kFloat));
    biases.push_back((y - scale * s).to(at::kFloat));
  }
  return LayerRouter::Gated(at::stack(gates), at::stack(ups), at::stack(scales), at::stack(biases), top);
}

}  // namespace outrider::moe
