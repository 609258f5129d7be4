#pragma once
// Channel records of whole numbers (Number::kI8) for the walk of decode_engine.h. A token is staged as whole numbers,
// too: sums of a block are exact but for their last bits, and one fp32 sum takes the blocks of a row one after another.

#include <cstddef>
#include <cstdint>

#include "kernels/decode_engine.h"
#include "kernels/engine.h"
#include "kernels/token_engine.h"
#include "kernels/vector_math.h"

namespace outrider::kernels {

// D multiplies as for WholePanel (linear_engine.h).
template <class V, class D>
struct WholeRecords {
  using F = typename V::F;
  using I = typename D::I;
  static constexpr Number kNumber = Number::kI8;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kPairs = 2 * kLanes;  // numbers of a vector of pairs
  static constexpr int64_t kSpan = 32;           // blocks whose factors are made together

  // A staged token: whole numbers of 16 bits, then one scale per block; all of whole spans, the rest zero.
  static int64_t Blocks(int64_t width) { return (width / kBlock + kSpan - 1) / kSpan * kSpan; }
  static int64_t StagedBytes(int64_t width) { return Blocks(width) * (kBlock * 2 + 4); }
  static void Stage(const float* x, int64_t width, std::byte* to) {
    __builtin_memset(to, 0, static_cast<size_t>(StagedBytes(width)));
    auto* scales = reinterpret_cast<float*>(to + Blocks(width) * kBlock * 2);
    TokenWork<V>::Quantise(x, width / kBlock, reinterpret_cast<int16_t*>(to), scales);
  }
  static const std::byte* Token(const StepTokens& tokens, int64_t token, int64_t width) {
    return tokens.staged + token * StagedBytes(width);
  }

  // Sums of the products of one block, in lanes.
  static F Dot(const std::byte* weights, const int16_t* x) {
    I dot = D::Product(D::Load(weights), D::LoadTokens(x));
    OUTRIDER_UNROLLED
    for (int64_t i = kPairs; i < kBlock; i += kPairs) dot = D::Step(dot, D::Load(weights + i), D::LoadTokens(x + i));
    return D::ToFloat(dot);
  }

  // Per block of a span: the scale of the row times that of the token. Reads and writes whole vectors, as records and
  // spans allow.
  static void Factors(const uint16_t* row, const float* token, int64_t blocks, float* to) {
    for (int64_t b = 0; b < blocks; b += kLanes) V::Store(to + b, V::Mul(V::LoadHalf(row + b), V::Load(token + b)));
  }

  template <int T, bool kPrefetch>
  static void Products(const std::byte* record, const std::byte* next, int64_t width, const std::byte* const* tokens,
                       float* gates, float* ups) {
    const int64_t padded = Blocks(width), blocks = width / kBlock;
    const auto* scales = reinterpret_cast<const uint16_t*>(record + 3 * width);
    const std::byte* const next_last = next + RecordBytes(kNumber, width) - 64;
    F g[T], u[T];
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) g[t] = u[t] = V::Zero();
    for (int64_t first = 0; first < blocks; first += kSpan, scales += kSpan) {
      const int64_t some = blocks - first < kSpan ? blocks - first : kSpan;
      float factors[T][2][kSpan];
      const int16_t* x[T];
      OUTRIDER_UNROLLED
      for (int t = 0; t < T; ++t) {
        x[t] = reinterpret_cast<const int16_t*>(tokens[t]) + first * kBlock;
        const float* own = reinterpret_cast<const float*>(tokens[t] + padded * kBlock * 2) + first;
        Factors(scales, own, some, factors[t][0]);
        Factors(scales + blocks, own, some, factors[t][1]);
      }
      const std::byte* gate = record + first * kBlock;
      for (int64_t b = 0; b < some; ++b, gate += kBlock) {
        if constexpr (kPrefetch) {
          OUTRIDER_UNROLLED
          for (int line = 0; line < 2; ++line) {  // a record has less than four bytes for one of gate
            __builtin_prefetch(next);
            next = next < next_last ? next + 64 : next_last;
          }
        }
        OUTRIDER_UNROLLED
        for (int t = 0; t < T; ++t) {
          g[t] = V::MulAdd(g[t], Dot(gate, x[t] + b * kBlock), V::Broadcast(factors[t][0] + b));
          u[t] = V::MulAdd(u[t], Dot(gate + width, x[t] + b * kBlock), V::Broadcast(factors[t][1] + b));
        }
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
    for (int64_t first = 0; first < blocks; first += kSpan) {
      const int64_t some = blocks - first < kSpan ? blocks - first : kSpan;
      float factors[N][T][kSpan];
      for (int i = 0; i < N; ++i) {
        const auto* scales = reinterpret_cast<const uint16_t*>(records[i] + 3 * width) + 2 * blocks + first;
        for (int64_t b = 0; b < some; b += kLanes) {
          const F scale = V::LoadHalf(scales + b);
          OUTRIDER_UNROLLED
          for (int t = 0; t < T; ++t) V::Store(factors[i][t] + b, V::Mul(scale, V::Set(h[t * kTogether + i])));
        }
      }
      for (int64_t b = 0; b < some; ++b) AddBlock<N, T>(factors, b, (first + b) * kBlock, records, width, sums);
    }
  }

  // Outputs [o, o + kBlock).
  template <int N, int T>
  static void AddBlock(const float (&factors)[N][T][kSpan], int64_t block, int64_t o, const std::byte* const* records,
                       int64_t width, float* const* sums) {
    F own[N][T];
    OUTRIDER_UNROLLED
    for (int i = 0; i < N; ++i) OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) own[i][t] = V::Broadcast(factors[i][t] + block);
    OUTRIDER_UNROLLED
    for (int64_t at = o; at < o + kBlock; at += kLanes) {
      F columns[N];
      OUTRIDER_UNROLLED
      for (int i = 0; i < N; ++i)
        columns[i] = V::LoadWhole(reinterpret_cast<const int8_t*>(records[i]) + 2 * width + at);
      OUTRIDER_UNROLLED
      for (int t = 0; t < T; ++t) {
        F s = V::Load(sums[t] + at);
        OUTRIDER_UNROLLED
        for (int i = 0; i < N; ++i) s = V::MulAdd(s, own[i][t], columns[i]);
        V::Store(sums[t] + at, s);
      }
    }
  }

  // gate x and up x of C channels for one token.
  template <int C>
  static void ProductsOfOne(const std::byte* const* records, int64_t width, const std::byte* token, LinesAhead& ahead,
                            float* gates, float* ups) {
    const int64_t blocks = width / kBlock;
    const auto* x = reinterpret_cast<const int16_t*>(token);
    const auto* own = reinterpret_cast<const float*>(token + Blocks(width) * kBlock * 2);
    F g[C], u[C];
    const std::byte* row[C];
    OUTRIDER_UNROLLED
    for (int c = 0; c < C; ++c) {
      g[c] = u[c] = V::Zero();
      row[c] = records[c];
    }
    for (int64_t first = 0; first < blocks; first += kSpan) {
      const int64_t some = blocks - first < kSpan ? blocks - first : kSpan;
      alignas(64) float factors[C][2][kSpan];
      for (int c = 0; c < C; ++c) {
        const auto* scales = reinterpret_cast<const uint16_t*>(row[c] + 3 * width) + first;
        Factors(scales, own + first, some, factors[c][0]);
        Factors(scales + blocks, own + first, some, factors[c][1]);
      }
      for (int64_t b = 0; b < some; ++b) {
        ahead.Ask<C>();
        const int64_t at = (first + b) * kBlock;
        OUTRIDER_UNROLLED
        for (int c = 0; c < C; ++c) {
          g[c] = V::MulAdd(g[c], Dot(row[c] + at, x + at), V::Broadcast(factors[c][0] + b));
          u[c] = V::MulAdd(u[c], Dot(row[c] + width + at, x + at), V::Broadcast(factors[c][1] + b));
        }
      }
    }
    V::Sums(g, gates);
    V::Sums(u, ups);
  }

  // Outputs of N channels for one token.
  template <int N>
  static void OutputsOfOne(const float* h, const std::byte* const* records, int64_t width, LinesAhead& ahead,
                           float* sum) {
    const int64_t blocks = width / kBlock;
    const std::byte* column[N];
    OUTRIDER_UNROLLED
    for (int i = 0; i < N; ++i) column[i] = records[i] + 2 * width;
    for (int64_t first = 0; first < blocks; first += kSpan) {
      const int64_t some = blocks - first < kSpan ? blocks - first : kSpan;
      alignas(64) float factors[N][kSpan];
      OUTRIDER_UNROLLED
      for (int i = 0; i < N; ++i) {
        const auto* scales = reinterpret_cast<const uint16_t*>(column[i] + width) + 2 * blocks + first;
        const F own = V::Set(h[i]);
        for (int64_t b = 0; b < some; b += kLanes) V::Store(factors[i] + b, V::Mul(V::LoadHalf(scales + b), own));
      }
      for (int64_t b = 0; b < some; ++b) {
        ahead.Ask<N - N / 4>();  // with ProductsOfOne a whole record for each channel
        F own[N];
        OUTRIDER_UNROLLED
        for (int i = 0; i < N; ++i) own[i] = V::Broadcast(factors[i] + b);
        OUTRIDER_UNROLLED
        for (int64_t k = 0; k < kBlock; k += kLanes) {
          const int64_t o = (first + b) * kBlock + k;
          F s = V::Load(sum + o);
          OUTRIDER_UNROLLED
          for (int i = 0; i < N; ++i)
            s = V::MulAdd(s, own[i], V::LoadWhole(reinterpret_cast<const int8_t*>(column[i]) + o));
          V::Store(sum + o, s);
        }
      }
    }
  }

  static constexpr DecodeEngine Table(const char* name, decltype(DecodeEngine::walk) walk) {
    return {name, kNumber, walk, &StagedBytes, &Stage};
  }
};

}  // namespace outrider::kernels
