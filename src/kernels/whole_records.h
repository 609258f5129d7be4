#pragma once
// Channel records of whole numbers (Number::kI8) for the walk of decode_engine.h. A token is staged as whole numbers,
// too: products are exact, and one fp32 sum takes the blocks of a row one after another.

#include <cstddef>
#include <cstdint>

#include "kernels/decode_engine.h"
#include "kernels/engine.h"
#include "kernels/token_engine.h"
#include "kernels/vector_math.h"

namespace outrider::kernels {

// D multiplies as for WholePanel (linear_engine.h), and has
//   kBytes            numbers of a vector, four to a lane
//   StartAt(starts)   what a vector of sums starts with, from one start per block in its first lane
//   Scales(row, i)    scales of vector i of a row
template <class V, class D>
struct WholeRecords {
  using F = typename V::F;
  using I = typename D::I;
  static constexpr Number kNumber = Number::kI8;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kLanesOfBlock = kBlock / 4;

  // A staged token: whole numbers, then for each block kLanesOfBlock starts, then as many copies of its scale; all of
  // an even number of blocks, the last one perhaps zero.
  static int64_t Blocks(int64_t width) { return (width / kBlock + 1) / 2 * 2; }
  static int64_t StagedBytes(int64_t width) { return Blocks(width) * (kBlock + 2 * kLanesOfBlock * 4); }
  static void Stage(const float* x, int64_t width, std::byte* to) {
    const int64_t blocks = Blocks(width), used = width / kBlock;
    auto* q = reinterpret_cast<int8_t*>(to);
    auto* starts = reinterpret_cast<int32_t*>(to + blocks * kBlock);
    auto* scales = reinterpret_cast<float*>(starts + blocks * kLanesOfBlock);
    __builtin_memset(to, 0, static_cast<size_t>(StagedBytes(width)));
    for (int64_t b = 0; b < used; ++b) {
      float scale = 0;
      int32_t sum = 0;
      TokenWork<V>::Quantise(x + b * kBlock, 1, q + b * kBlock, &scale, &sum);
      starts[b * kLanesOfBlock] = -128 * sum;
      for (int64_t i = 0; i < kLanesOfBlock; ++i) scales[b * kLanesOfBlock + i] = scale;
    }
  }
  static const std::byte* Token(const StepTokens& tokens, int64_t token, int64_t width) {
    return tokens.staged + token * StagedBytes(width);
  }

  struct View {
    const std::byte* q;
    const int32_t* starts;
    const float* scales;

    View(const std::byte* token, int64_t blocks)
        : q(token),
          starts(reinterpret_cast<const int32_t*>(token + blocks * kBlock)),
          scales(reinterpret_cast<const float*>(starts + blocks * kLanesOfBlock)) {}
    // Adds vector `i` of a row to its sum.
    F Add(F sum, I weights, F weight_scales, int64_t i) const {
      const I dot = D::Step(D::StartAt(starts + i * kLanes), weights, D::LoadPlain(q + i * D::kBytes));
      return V::MulAdd(sum, D::ToFloat(dot), V::Mul(weight_scales, V::Load(scales + i * kLanes)));
    }
  };

  template <int T, bool kPrefetch>
  static void Products(const Channel& channel, int64_t width, const std::byte* const* tokens, float* gates,
                       float* ups) {
    const int64_t blocks = Blocks(width), vectors = (width + D::kBytes - 1) / D::kBytes;
    const int64_t ahead_bytes = (RecordBytes(kNumber, width) / 64 + vectors - 1) / vectors * 64;
    const std::byte* gate = channel.record;
    const std::byte* up = gate + width;
    const auto* gate_scales = reinterpret_cast<const uint16_t*>(gate + 3 * width);
    const uint16_t* up_scales = gate_scales + width / kBlock;
    F g[T], u[T];
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) g[t] = u[t] = V::Zero();
    for (int64_t i = 0; i < vectors; ++i) {
      if constexpr (kPrefetch)
        for (int64_t at = 0; at < ahead_bytes; at += 64) __builtin_prefetch(channel.next + i * ahead_bytes + at);
      const I gate_row = D::Load(gate + i * D::kBytes), up_row = D::Load(up + i * D::kBytes);
      const F gate_scale = D::Scales(gate_scales, i), up_scale = D::Scales(up_scales, i);
      OUTRIDER_UNROLLED
      for (int t = 0; t < T; ++t) {
        const View token(tokens[t], blocks);
        g[t] = token.Add(g[t], gate_row, gate_scale, i);
        u[t] = token.Add(u[t], up_row, up_scale, i);
      }
    }
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) {
      gates[t] = V::Sum(g[t]);
      ups[t] = V::Sum(u[t]);
    }
  }

  template <int N, int T>
  static void AddColumns(const float* h, const std::byte* const* records, int64_t width, float* const* sums) {
    const int64_t blocks = width / kBlock;
    F factors[T][N];
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) OUTRIDER_UNROLLED
    for (int i = 0; i < N; ++i) factors[t][i] = V::Set(h[t * kTogether + i]);
    for (int64_t b = 0; b < blocks; ++b) {
      F scales[N];
      OUTRIDER_UNROLLED
      for (int i = 0; i < N; ++i) {
        const auto* row = reinterpret_cast<const uint16_t*>(records[i] + 3 * width) + 2 * blocks;
        scales[i] = V::Set(__builtin_bit_cast(float, static_cast<uint32_t>(row[b]) << 16));
      }
      OUTRIDER_UNROLLED
      for (int64_t o = b * kBlock; o < b * kBlock + kBlock; o += kLanes) {
        F columns[N];  // exact: 7 bits of a whole number times 8 of a scale
        OUTRIDER_UNROLLED
        for (int i = 0; i < N; ++i)
          columns[i] = V::Mul(scales[i], V::LoadWhole(reinterpret_cast<const int8_t*>(records[i]) + 2 * width + o));
        OUTRIDER_UNROLLED
        for (int t = 0; t < T; ++t) {
          F s = V::Load(sums[t] + o);
          OUTRIDER_UNROLLED
          for (int i = 0; i < N; ++i) s = V::MulAdd(s, factors[t][i], columns[i]);
          V::Store(sums[t] + o, s);
        }
      }
    }
  }

  static constexpr DecodeEngine Table(const char* name, decltype(DecodeEngine::walk) walk) {
    return {name, kNumber, walk, &StagedBytes, &Stage};
  }
};

}  // namespace outrider::kernels
