#pragma once
// Carved experts, a baseline: per layer a disjoint partition into channels that all tokens use and clusters of channels
// that are active together, with a router made from the data (the ideas of CMoE, arXiv 2502.04416, and ExpertWeaver,
// arXiv 2602.15521).

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "base/result.h"
#include "moe/layer_router.h"
#include "moe/masks.h"

namespace outrider::moe {

struct CarvedSizes {
  int64_t shared = 0;
  std::vector<int64_t> routed;  // per expert; they differ by at most one channel
};

// Splits `channels` so that a token with `top` of `experts` routed experts uses at most `keep` channels, and at least
// keep - top; equal experts where the numbers allow it. Code E_OPTION: no such split; names the options.
base::Result<CarvedSizes> SplitChannels(int64_t channels, int64_t keep, int64_t experts, int64_t top);

struct CarveOptions {
  int64_t keep = 0, experts = 8, top = 2;
  double sink_factor = 64;  // see CoverageOptions: such channels are shared
  int64_t rounds = 20;      // of clustering, at most
};

// How active channels are, and how active together, on the texts that were shown. The activity of a channel for a token
// is sqrt(min(8, D * its share of the token's mass)): between "active or not" and the mass itself, in which a few
// tokens would outweigh all others.
class CoActivation {
 public:
  CoActivation(int64_t layers, int64_t channels, at::Device device);
  // h [T, D]: unmasked input of down_proj; column_norms [D]. Mass: see ActivationMass.
  void Add(int64_t layer, const at::Tensor& h, const at::Tensor& column_norms);

  int64_t layers() const { return static_cast<int64_t>(together_.size()); }
  int64_t channels() const { return channels_; }
  std::vector<float> Together(int64_t layer) const;  // [D, D] sums over tokens of the products of two activities
  std::vector<double> Mass(int64_t layer) const;     // [D] sums over tokens of shares of mass
  std::vector<double> Peaks(int64_t layer) const;    // [D] largest share of a token's mass

 private:
  int64_t channels_;
  std::vector<at::Tensor> together_, mass_, peaks_;
};

struct Carved {
  Masks masks;                                        // shared channels in every expert, the others in one
  std::vector<std::vector<int64_t>> representatives;  // [layers][experts]: the channel nearest to the cluster's mean
};

// Shared are the channels that carry most mass on average, sinks first; the rest is clustered by co-activation into
// experts of equal size. Deterministic. Codes: those of SplitChannels.
base::Result<Carved> Carve(const CoActivation& seen, const CarveOptions& options);

// The line from |h| of an expert's representative to the logits of its target, 150 * (share of mass of the expert's
// own channels, less the mean over experts), by least squares over the tokens that were shown.
class RepresentativeFit {
 public:
  RepresentativeFit(const Carved& carved, at::Device device);
  void Add(int64_t layer, const at::Tensor& h, const at::Tensor& column_norms);  // as CoActivation::Add
  // gate and up: per layer [D, d], rows of the representatives become the router's.
  LayerRouter Router(const std::vector<at::Tensor>& gate, const std::vector<at::Tensor>& up, int64_t top) const;

 private:
  std::vector<at::Tensor> own_, channels_;  // per layer: [N, D] channels of one expert alone; [N] representatives
  std::vector<at::Tensor> sums_;            // per layer [5, N] fp64: tokens, s, s^2, y, s * y
};

}  // namespace outrider::moe
