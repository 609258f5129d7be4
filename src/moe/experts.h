#pragma once
// Choosing experts from activations of the dense model, in two ways.
// Published (Read-ME, arXiv 2410.19123, section 3.2 of the method): how much each FFN channel does on the text of a
// domain; expert i keeps the k channels with the highest statistic of domain i, per layer.
// Coverage experts (ours): masks chosen so that the best expert of a token keeps as much of its activation mass as
// possible, by Lloyd iterations over tokens or windows of tokens. Domain labels play no part.

#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "moe/masks.h"

namespace outrider::moe {

enum class Statistic : uint8_t {
  kL1,           // published: mean |h_c|
  kL1Out,        // mean |h_c| * ||Wd[:, c]||_2
  kFluctuation,  // variance of h_c * ||Wd[:, c]||_2^2 (the idea of FLAP, AAAI 2024)
};

// Sums over the tokens of one domain, in fp64. Chunks are summed one by one in the order given, so how many of them a
// forward pass takes at once does not change a bit.
class ChannelSums {
 public:
  ChannelSums(int64_t layers, int64_t channels, at::Device device);
  ChannelSums(ChannelSums&&) = default;
  ChannelSums& operator=(ChannelSums&&) = default;
  ChannelSums(const ChannelSums&) = delete;  // a copy would share its sums

  // h [n * chunk, D]: the input of down_proj of `layer`, nothing masked, for n chunks of `chunk` tokens.
  void Add(int64_t layer, const at::Tensor& h, int64_t chunk);

  int64_t Tokens(int64_t layer) const { return tokens_.at(static_cast<size_t>(layer)); }
  // Scores [D] of one layer. down [d, D]: its down_proj.
  std::vector<double> Scores(Statistic statistic, int64_t layer, const at::Tensor& down) const;
  // Mean of h [D], fp64 on the CPU.
  at::Tensor Mean(int64_t layer) const;

 private:
  std::vector<at::Tensor> absolute_, sum_, square_;  // per layer [D] fp64
  std::vector<int64_t> tokens_;
};

// Expert i keeps the k channels with the highest score in domain i. down: per layer [d, D].
Masks SelectPublished(std::span<const ChannelSums> domains, Statistic statistic, std::span<const at::Tensor> down,
                      int64_t k);

// One expert over all domains (scores averaged), L * k channels in all: k in each layer, or, by fluctuation, compared
// across layers.
Masks SelectStatic(std::span<const ChannelSums> domains, Statistic statistic, std::span<const at::Tensor> down,
                   int64_t k);

// k channels of every layer for every expert, uniformly at random by seed.
Masks SelectRandom(int64_t experts, int64_t layers, int64_t channels, int64_t k, uint64_t seed);

// Per layer [D] fp32: the mean of h over all domains where `masks` (of one expert) drops the channel, else 0. Added to
// the masked h, it is the bias that compensates for the channels that are gone.
std::vector<at::Tensor> Compensation(std::span<const ChannelSums> domains, const Masks& masks);

// 2-norms of the columns of down_proj [d, D]: fp32 [D] on its device.
at::Tensor ColumnNorms(const at::Tensor& down);

// Mass fractions a[l, u, c] of `units`: a unit is a token, a window or a document, and has the mean of its tokens.
class MassSample {
 public:
  // Holds at most `units` units: 2 * units * layers * channels bytes on `device`.
  MassSample(int64_t layers, int64_t channels, int64_t units, at::Device device);

  // h [T, D]: unmasked input of down_proj of `layer`; column_norms [D]; `lengths`: tokens of each unit, T in all. Every
  // layer gets the same units in the same order.
  void Add(int64_t layer, const at::Tensor& h, const at::Tensor& column_norms, std::span<const int64_t> lengths);
  // The same from mass [T, D] fp32 of any kind whose rows sum to 1, be it on average over the layers.
  void AddMass(int64_t layer, at::Tensor mass, std::span<const int64_t> lengths);

  int64_t layers() const { return static_cast<int64_t>(mass_.size()); }
  int64_t channels() const { return channels_; }
  int64_t units() const { return filled_.back(); }
  const std::vector<int64_t>& tokens() const { return tokens_; }  // per unit
  // fp32 [end - begin, D], up to fp16 rounding.
  at::Tensor Rows(int64_t layer, int64_t begin, int64_t end) const;
  // [D]: the largest share of a single token's mass that each channel had.
  std::vector<double> Peaks(int64_t layer) const;
  // [D]: mean over units.
  std::vector<double> Mean(int64_t layer) const;
  // One unit's mass in one layer, as scores.
  std::vector<double> Row(int64_t layer, int64_t unit) const;
  at::Device device() const { return mass_[0].device(); }

 private:
  int64_t channels_, capacity_;
  std::vector<at::Tensor> mass_;   // per layer [units, D] fp16, times D
  std::vector<at::Tensor> peaks_;  // per layer [D]
  std::vector<int64_t> filled_;    // per layer
  std::vector<int64_t> tokens_;
};

struct CoverageOptions {
  int64_t experts = 8;
  int64_t keep = 0;                          // channels per expert and layer
  std::vector<int64_t> keep_per_layer = {};  // empty: `keep` in each
  bool across_layers = false;                // `keep` on average: the channels with the most mass of all layers
  int64_t rounds = 15;
  uint64_t seed = 0;
  // Channels that once carried more than sink_factor / D of a token's mass are in every expert, at most keep / 4 of a
  // layer; D or more: none. They make attention sinks: a text whose first token lacks them is lost, however good its
  // other masks.
  double sink_factor = 64;
};

struct CoverageExperts {
  Masks masks;
  std::vector<double> coverage;  // mean share of mass kept by the best expert: of the start, then after each round
  std::vector<int64_t> ids;      // per unit, under `masks`
  int64_t reseeded = 0;          // experts that had lost all units and were started anew
};

// Starts from the own top channels of `experts` units drawn by seed. Deterministic; ties go to the lowest expert and
// channel. Needs at least `experts` units.
CoverageExperts FindCoverageExperts(const MassSample& sample, const CoverageOptions& options);

}  // namespace outrider::moe
