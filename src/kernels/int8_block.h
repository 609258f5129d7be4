#pragma once
// Blocks of Number::kI8. The scale is a half-precision number, rounded up, so that no value leaves [-127, 127].

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/number.h"

namespace outrider::kernels {

inline float FloatOfHalf(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000U) << 16, exponent = bits >> 10 & 0x1fU, fraction = bits & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | fraction << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = static_cast<float>(fraction) * 0x1p-24F;
  return sign != 0 ? -small : small;
}

// The lowest half-precision number that is not below `value`, which is not negative; the highest one for more than
// that.
inline uint16_t HalfNotBelow(float value) {
  constexpr uint16_t kHighest = 0x7bff;
  if (value >= FloatOfHalf(kHighest)) return kHighest;
  if (value < 0x1p-14F) return static_cast<uint16_t>(std::ceil(value * 0x1p24F));  // not normal, steps of 2^-24
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits - (112U << 23) + 0x1fffU) >> 13);
}

inline uint16_t ScaleOf(const float* values) {
  float most = 0;
  for (int64_t i = 0; i < kBlock; ++i) {
    const float size = std::fabs(values[i]);
    most = size > most ? size : most;  // what is no number does not count
  }
  return HalfNotBelow(most / 127);
}

// The nearest multiple of the scale, the even one of two.
inline int8_t WholeOf(float value, float scale) {
  constexpr float kUnits = 0x1.8p23F;  // numbers of this size have no fraction: adding it rounds
  if (scale == 0) return 0;
  const float whole = (value / scale + kUnits) - kUnits;
  const float above = whole > -127 ? whole : -127.0F;
  return static_cast<int8_t>(above < 127 ? above : 127.0F);
}

}  // namespace outrider::kernels
