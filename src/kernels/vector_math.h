#pragma once
// silu(g) * u and the multiply forms over a vector type V of one instruction set:
//   V::F, V::kLanes; Zero, Set(float), Load, Store, LoadBf16, StoreBf16, Add, Mul, Div, Min, Max, Round,
//   MulAdd(c, a, b) = c + a * b, Scale(a, n) = a * 2^n, Sum (fixed order)
// V lies in an unnamed namespace, so every instantiation is internal to the unit that is compiled for its instruction
// set.

#include <cstddef>
#include <cstdint>

#include "kernels/engine.h"

// Before a loop whose count is a constant: its arrays of vectors then live in registers.
#if defined(__clang__)
#define OUTRIDER_UNROLLED _Pragma("unroll")
#else
#define OUTRIDER_UNROLLED _Pragma("GCC unroll 16")
#endif

namespace outrider::kernels {

// exp(z) by range reduction and a Taylor polynomial; relative error below 3e-7. z is clamped to [-87, 88].
template <class V>
typename V::F Exp(typename V::F z) {
  using F = typename V::F;
  z = V::Max(V::Min(z, V::Set(88.0F)), V::Set(-87.0F));
  const F n = V::Round(V::Mul(z, V::Set(1.44269504F)));
  F r = V::MulAdd(z, n, V::Set(-0.693359375F));  // ln 2 in two parts, the first exact in few bits
  r = V::MulAdd(r, n, V::Set(2.12194440e-4F));
  F p = V::Set(1.0F / 720);
  p = V::MulAdd(V::Set(1.0F / 120), p, r);
  p = V::MulAdd(V::Set(1.0F / 24), p, r);
  p = V::MulAdd(V::Set(1.0F / 6), p, r);
  p = V::MulAdd(V::Set(0.5F), p, r);
  p = V::MulAdd(V::Set(1.0F), p, r);
  p = V::MulAdd(V::Set(1.0F), p, r);
  return V::Scale(p, n);
}

template <class V>
typename V::F SiluTimes(typename V::F g, typename V::F u) {
  const typename V::F denominator = V::Add(V::Set(1.0F), Exp<V>(V::Mul(g, V::Set(-1.0F))));
  return V::Div(V::Mul(g, u), denominator);
}

// fp32 products of fp32 numbers (kBf16 false), or of bf16 numbers converted first; hidden numbers are then rounded to
// bf16, so that all multiply forms of bf16 agree on what is rounded where.
template <class Vector, bool kFromBf16>
struct FloatForm {
  using V = Vector;
  using F = typename V::F;
  static constexpr Number kNumber = kFromBf16 ? Number::kBf16 : Number::kF32;
  static constexpr int64_t kDepth = 1;
  static constexpr bool kDirect = !kFromBf16;  // rows are read from the records themselves

  static F Load(const uint32_t* at) { return V::Load(reinterpret_cast<const float*>(at)); }
  static F Broadcast(const uint32_t* at) { return V::Broadcast(reinterpret_cast<const float*>(at)); }
  static F MulAdd(F sum, F a, F b) { return V::MulAdd(sum, a, b); }

  static F LoadNumbers(const std::byte* at) {
    if constexpr (kFromBf16)
      return V::LoadBf16(reinterpret_cast<const uint16_t*>(at));
    else
      return V::Load(reinterpret_cast<const float*>(at));
  }

  static void ConvertRow(const std::byte* row, int64_t numbers, float* to) {
    for (int64_t i = 0; i < numbers; i += V::kLanes) V::Store(to + i, LoadNumbers(row + i * BytesOf(kNumber)));
  }

  // Tokens [first, first + kLanes) of the segment, one to a lane; lanes past the end are zero.
  static void PackBlock(const Segment& segment, const void* x, int64_t width, int64_t first, uint32_t* to,
                        int64_t stride) {
    for (int64_t lane = 0; lane < V::kLanes; ++lane) {
      uint32_t* column = to + lane;
      if (first + lane >= segment.count) {
        for (int64_t k = 0; k < width; ++k) column[k * stride] = 0;
      } else if constexpr (kFromBf16) {
        const auto* row = static_cast<const uint16_t*>(x) + segment.tokens[first + lane] * width;
        for (int64_t k = 0; k < width; ++k) column[k * stride] = static_cast<uint32_t>(row[k]) << 16;
      } else {
        const auto* row = static_cast<const uint32_t*>(x) + segment.tokens[first + lane] * width;
        for (int64_t k = 0; k < width; ++k) column[k * stride] = row[k];
      }
    }
  }

  static void StoreHidden(const float* from, int64_t units, int64_t stride, uint32_t* to) {
    for (int64_t i = 0; i < units * stride; i += V::kLanes) {
      F h = V::Load(from + i);
      if constexpr (kFromBf16) h = V::RoundBf16(h);
      V::Store(reinterpret_cast<float*>(to) + i, h);
    }
  }

  static void PackPanel(const LayerView& layer, const Segment& segment, int64_t first, int64_t outputs, uint32_t* to) {
    const int64_t bytes = BytesOf(kNumber);
    for (int64_t c = 0; c < segment.active; ++c) {
      const std::byte* column = layer.records + ((segment.channels[c] * 3 + 2) * layer.width + first) * bytes;
      if (c + 4 < segment.active) {
        const std::byte* later = layer.records + ((segment.channels[c + 4] * 3 + 2) * layer.width + first) * bytes;
        for (int64_t line = 0; line < outputs * bytes; line += 64) __builtin_prefetch(later + line);
      }
      for (int64_t o = 0; o < outputs; o += V::kLanes)
        V::Store(reinterpret_cast<float*>(to) + c * outputs + o, LoadNumbers(column + o * bytes));
    }
  }

  // vectors * kLanes numbers to y[at ...].
  static void StoreOutput(const float* from, int64_t vectors, void* y, int64_t at) {
    for (int64_t i = 0; i < vectors * V::kLanes; i += V::kLanes) {
      if constexpr (kFromBf16)
        V::StoreBf16(static_cast<uint16_t*>(y) + at + i, V::Load(from + i));
      else
        V::Store(static_cast<float*>(y) + at + i, V::Load(from + i));
    }
  }
};

}  // namespace outrider::kernels
