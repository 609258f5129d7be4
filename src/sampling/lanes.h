#pragma once
// Four numbers at once, in a type of GCC and clang on every target. Nothing here depends on an instruction set.

#include <cstddef>
#include <cstdint>

namespace outrider::sampling {

using Floats = float __attribute__((vector_size(16)));
using Bits = uint32_t __attribute__((vector_size(16)));
inline constexpr size_t kLanes = 4;

inline Floats Load(const float* at) {
  Floats result;
  __builtin_memcpy(&result, at, sizeof(result));
  return result;
}
inline void Store(float* at, Floats a) { __builtin_memcpy(at, &a, sizeof(a)); }
inline Floats Every(float value) { return Floats{value, value, value, value}; }
inline Floats Larger(Floats a, Floats b) { return a > b ? a : b; }  // b where either is no number
inline Bits BitsOf(Floats a) { return reinterpret_cast<Bits>(a); }
inline Floats FromBits(Bits a) { return reinterpret_cast<Floats>(a); }
inline float LargestOf(Floats a) {
  const float low = a[0] > a[1] ? a[0] : a[1], high = a[2] > a[3] ? a[2] : a[3];
  return low > high ? low : high;
}

}  // namespace outrider::sampling
