#include "sampling/weights.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "sampling/lanes.h"

namespace outrider::sampling {
namespace {

constexpr size_t kStride = 4 * kLanes;
constexpr float kLowest = -87;  // no weight is smaller than the smallest normal number

// exp(x) for x <= 0: 2^n * exp(r) with |r| <= ln(2) / 2.
inline Floats ExpOf(Floats x) {
  constexpr float kRound = 12582912;                       // 1.5 * 2^23: what is added to it loses its fraction
  const auto live = reinterpret_cast<Bits>(x >= kLowest);  // what comes of others is thrown away
  const Floats shifted = x * 1.44269504F + kRound;
  const Bits n = BitsOf(shifted) - BitsOf(Every(kRound));
  const Floats whole = shifted - kRound;
  const Floats r = x - whole * 0.693359375F + whole * 2.12194440e-4F;  // ln(2) in two parts
  Floats series = r * 1.9875691500e-4F + 1.3981999507e-3F;
  series = series * r + 8.3334519073e-3F;
  series = series * r + 4.1665795894e-2F;
  series = series * r + 1.6666665459e-1F;
  series = series * r + 5.0000001201e-1F;
  const Floats power = series * (r * r) + r + 1.0F;
  return FromBits((BitsOf(power) + (n << 23)) & live);
}

struct Exponents {
  float largest, stretch, scale;
  Floats Weights(const float* logits) const { return ExpOf((Load(logits) - largest) * stretch * scale); }
};

// The last logits of a row, as many as a stride has; what is missing weighs nothing.
struct Tail {
  explicit Tail(std::span<const float> logits) {
    std::fill(std::copy(logits.begin(), logits.end(), padded), padded + kStride,
              -std::numeric_limits<float>::infinity());
  }
  float padded[kStride];
};

}  // namespace

Weigher::Weigher(float largest, double temperature) : largest_(largest), temperature_(temperature) {
  OUTRIDER_CHECK(largest - largest == 0 && temperature > 0, "largest ", largest, ", temperature ", temperature);
  // 1 / temperature as two factors, so that neither overflows while a difference of logits still counts.
  constexpr double kStretch = 0x1p100;
  const bool cold = temperature < 0x1p-60;
  stretch_ = cold ? static_cast<float>(kStretch) : 1.0F;
  const double scale = 1 / (cold ? temperature * kStretch : temperature);
  scale_ = static_cast<float>(std::min(scale, double{std::numeric_limits<float>::max()}));
}

void Weigher::Weigh(std::span<const float> logits, float* weights) const {
  const Exponents exponents{largest_, stretch_, scale_};
  const size_t whole = logits.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) Store(weights + i, exponents.Weights(logits.data() + i));
  if (whole == logits.size()) return;
  const Tail tail(logits.subspan(whole));
  float last[kLanes];
  Store(last, exponents.Weights(tail.padded));
  std::copy_n(last, logits.size() - whole, weights + whole);
}

double Weigher::Sum(std::span<const float> logits) const {
  const Exponents exponents{largest_, stretch_, scale_};
  double lanes[kLanes] = {};
  const auto add = [&](const float* at) {
    const Floats four = (exponents.Weights(at) + exponents.Weights(at + kLanes)) +
                        (exponents.Weights(at + 2 * kLanes) + exponents.Weights(at + 3 * kLanes));
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<double>(four[lane]);
  };
  const size_t whole = logits.size() / kStride * kStride;
  for (size_t i = 0; i < whole; i += kStride) add(logits.data() + i);
  if (whole < logits.size()) add(Tail(logits.subspan(whole)).padded);
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

}  // namespace outrider::sampling
