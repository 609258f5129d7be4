#pragma once
// Blocks of Number::kI8. The scale is a bf16 number, rounded away from zero, so that no value leaves [-127, 127].

#include <cmath>
#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/number.h"

namespace outrider::kernels {

inline uint16_t ScaleOf(const float* values) {
  float most = 0;
  for (int64_t i = 0; i < kBlock; ++i) most = std::fmax(most, std::fabs(values[i]));
  const auto bits = std::bit_cast<uint32_t>(most / 127);
  return static_cast<uint16_t>((bits + 0xffffU) >> 16);
}

// The nearest multiple of the scale.
inline int8_t WholeOf(float value, float scale) {
  if (scale == 0) return 0;
  const float whole = std::nearbyint(value / scale);
  return static_cast<int8_t>(std::fmin(std::fmax(whole, -127.0F), 127.0F));
}

// Stored as unsigned bytes where the multiply instruction wants them so.
inline uint8_t ShiftedOf(int8_t whole) { return static_cast<uint8_t>(whole + 128); }

}  // namespace outrider::kernels
