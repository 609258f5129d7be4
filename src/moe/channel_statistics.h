#pragma once
// How much each FFN channel does on the text of a domain, and the experts that follow from it (Read-ME, arXiv
// 2410.19123, section 3.2 of the method): the k channels with the highest statistic, per layer and domain.

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

// Per layer [D] fp32: the mean of h over all domains where `masks` (of one expert) drops the channel, else 0. Added to
// the masked h, it is the bias that compensates for the channels that are gone.
std::vector<at::Tensor> Compensation(std::span<const ChannelSums> domains, const Masks& masks);

// 2-norms of the columns of down_proj [d, D]: fp32 [D] on its device.
at::Tensor ColumnNorms(const at::Tensor& down);

}  // namespace outrider::moe
