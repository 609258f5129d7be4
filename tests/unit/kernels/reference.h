#pragma once
// Random layers and the masked dense FFN in fp64 that the kernels are compared with.

#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "kernels/bf16.h"
#include "kernels/channel_store.h"

namespace outrider::kernels::tests {

// Numbers as they are stored: fp32, or bf16 bits, with the values that the bits stand for.
struct Numbers {
  Number number = Number::kF32;
  std::vector<float> values;
  std::vector<uint16_t> bits;

  const void* data() const { return number == Number::kF32 ? static_cast<const void*>(values.data()) : bits.data(); }
};

inline Numbers RandomNumbers(std::mt19937& random, int64_t count, float scale, Number number) {
  std::normal_distribution<float> normal(0, scale);
  Numbers result{number, std::vector<float>(static_cast<size_t>(count)), {}};
  for (float& value : result.values) value = normal(random);
  if (number == Number::kF32) return result;
  for (float& value : result.values) {
    result.bits.push_back(Bf16Of(value));
    value = FloatOf(result.bits.back());
  }
  return result;
}

struct Layer {
  int64_t width = 0, channels = 0, experts = 0;
  Numbers gate, up, down;  // as DenseFfn
  std::vector<Signature> signatures;

  ChannelStore Packed() const {
    const DenseFfn dense{gate.data(), up.data(), down.data(), gate.number, channels, width};
    return ChannelStore::Pack(dense, signatures, experts).value();
  }
};

// Each expert has each channel with probability `share`.
inline Layer RandomLayer(uint32_t seed, int64_t width, int64_t channels, int64_t experts, double share, Number number) {
  std::mt19937 random(seed);
  Layer layer{width, channels, experts, {}, {}, {}, {}};
  const float scale = 1.0F / std::sqrt(static_cast<float>(width));
  layer.gate = RandomNumbers(random, channels * width, scale * 2, number);
  layer.up = RandomNumbers(random, channels * width, scale, number);
  layer.down = RandomNumbers(random, channels * width, scale, number);
  std::bernoulli_distribution has(share);
  for (int64_t c = 0; c < channels; ++c) {
    Signature signature = 0;
    for (int64_t i = 0; i < experts; ++i) signature = static_cast<Signature>(signature | (has(random) ? 1U << i : 0U));
    layer.signatures.push_back(signature);
  }
  return layer;
}

// y [tokens, width] in fp64, hidden numbers unrounded, and two scales that rounding errors of each number are measured
// against: the sum of |h * down|, for what h is rounded to; and the same with h replaced by the product of the sums of
// absolute terms of gate and up, for the sums that make h.
struct Expected {
  std::vector<double> y, terms, products;
};

inline Expected MaskedDense(const Layer& layer, const Numbers& x, std::span<const uint8_t> experts) {
  const int64_t d = layer.width;
  const std::vector<double> zeros(experts.size() * static_cast<size_t>(d));
  Expected result{zeros, zeros, zeros};
  for (size_t t = 0; t < experts.size(); ++t) {
    for (int64_t c = 0; c < layer.channels; ++c) {
      if ((layer.signatures[static_cast<size_t>(c)] >> experts[t] & 1U) == 0) continue;
      double g = 0, u = 0, g_size = 0, u_size = 0;
      for (int64_t j = 0; j < d; ++j) {
        const double value = x.values[t * static_cast<size_t>(d) + static_cast<size_t>(j)];
        const double g_term = value * layer.gate.values[static_cast<size_t>(c * d + j)];
        const double u_term = value * layer.up.values[static_cast<size_t>(c * d + j)];
        g += g_term;
        u += u_term;
        g_size += std::abs(g_term);
        u_size += std::abs(u_term);
      }
      const double h = g / (1 + std::exp(-g)) * u;
      for (int64_t o = 0; o < d; ++o) {
        const double weight = layer.down.values[static_cast<size_t>(o * layer.channels + c)];
        const size_t at = t * static_cast<size_t>(d) + static_cast<size_t>(o);
        result.y[at] += h * weight;
        result.terms[at] += std::abs(h * weight);
        result.products[at] += g_size * u_size * std::abs(weight);
      }
    }
  }
  return result;
}

inline std::vector<uint8_t> RandomExperts(uint32_t seed, int64_t tokens, int64_t experts) {
  std::mt19937 random(seed);
  std::discrete_distribution<int> skewed({5, 1, 3, 1, 2, 1, 1, 4, 1, 1, 1, 1, 1, 1, 1, 1});
  std::vector<uint8_t> result;
  for (int64_t t = 0; t < tokens; ++t) result.push_back(static_cast<uint8_t>(skewed(random) % experts));
  return result;
}

}  // namespace outrider::kernels::tests
