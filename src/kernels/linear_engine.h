#pragma once
// Walks over panels (matrix.h). A sum belongs to one row and one token and takes the columns one after another, so its
// bits do not depend on how many tokens share the walk.

#include <cstddef>
#include <cstdint>

#include "kernels/engine.h"
#include "kernels/vector_math.h"

namespace outrider::kernels {

constexpr int64_t kLanesOfPanel = 32;  // kPanelRows

// Sums of T tokens over one panel of fp32 or bf16. One stream through memory, a line every few cycles: processors
// prefetch that by themselves, and better than with instructions in between.
template <class V, bool kFromBf16>
struct FloatPanel {
  using F = typename V::F;
  static constexpr Number kNumber = kFromBf16 ? Number::kBf16 : Number::kF32;
  static constexpr int kTokens = V::kLinearTokens;
  static constexpr int kVectors = kLanesOfPanel / V::kLanes;

  template <int T>
  static void AddColumn(F (&sums)[T][kVectors], const F (&weights)[kVectors], const float* x, int64_t stride) {
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) {
      const F value = V::Broadcast(x + t * stride);
      OUTRIDER_UNROLLED
      for (int v = 0; v < kVectors; ++v) sums[t][v] = V::MulAdd(sums[t][v], value, weights[v]);
    }
  }

  template <int T, bool /*kPrefetch*/>
  static void Sums(const std::byte* panel, const TokenBlocks& tokens, int64_t columns, int64_t first, float* out) {
    F sums[T][kVectors], weights[kVectors];
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) OUTRIDER_UNROLLED
    for (int v = 0; v < kVectors; ++v) sums[t][v] = V::Zero();
    const float* x = tokens.x + first * tokens.stride;
    for (int64_t k = 0; k < columns; k += kFromBf16 ? 2 : 1) {
      if constexpr (kFromBf16) {
        F odd[kVectors];
        OUTRIDER_UNROLLED
        for (int v = 0; v < kVectors; ++v) V::LoadPairs(panel + v * V::kLanes * 4, &weights[v], &odd[v]);
        AddColumn<T>(sums, weights, x + k, tokens.stride);
        AddColumn<T>(sums, odd, x + k + 1, tokens.stride);
      } else {
        OUTRIDER_UNROLLED
        for (int v = 0; v < kVectors; ++v) weights[v] = V::Load(reinterpret_cast<const float*>(panel) + v * V::kLanes);
        AddColumn<T>(sums, weights, x + k, tokens.stride);
      }
      panel += kLanesOfPanel * 4;
    }
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) OUTRIDER_UNROLLED
    for (int v = 0; v < kVectors; ++v) V::Store(out + t * kLanesOfPanel + v * V::kLanes, sums[t][v]);
  }
};

// The same for blocks of whole numbers: sums of a block are exact before they become fp32. D multiplies them:
//   D::W, D::I           as many pairs of 16-bit numbers, or 32-bit sums, as V has lanes
//   Load, LoadTokens     pairs of 8-bit weights, or of a token's 16-bit numbers, widened to W
//   Broadcast            one pair of a token
//   Zero, Step, ToFloat  of sums; Step(sums, weights, numbers); Product(weights, numbers) is a step from zero
template <class V, class D>
struct WholePanel {
  using F = typename V::F;
  using I = typename D::I;
  static constexpr Number kNumber = Number::kI8;
  static constexpr int kTokens = D::kLinearTokens;
  static constexpr int kVectors = kLanesOfPanel / V::kLanes;
  static constexpr int64_t kScales = kLanesOfPanel * kScaleBytes, kBytes = kScales + kLanesOfPanel * kBlock;
  static constexpr int64_t kAhead = 8192;  // bytes; more work between two lines than above

  template <int T, bool kPrefetch>
  static void Sums(const std::byte* panel, const TokenBlocks& tokens, int64_t columns, int64_t first, float* out) {
    F sums[T][kVectors];
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) OUTRIDER_UNROLLED
    for (int v = 0; v < kVectors; ++v) sums[t][v] = V::Zero();
    const int64_t blocks = columns / kBlock;
    const int16_t* q = tokens.q + first * columns;
    const float* scales = tokens.scales + first * blocks;
    for (int64_t b = 0; b < blocks; ++b, panel += kBytes) {
      if constexpr (kPrefetch)
        for (int64_t line = 0; line < kBytes; line += 64) __builtin_prefetch(panel + kAhead + line);
      I dots[T][kVectors];
      OUTRIDER_UNROLLED
      for (int t = 0; t < T; ++t) OUTRIDER_UNROLLED
      for (int v = 0; v < kVectors; ++v) dots[t][v] = D::Zero();
      const std::byte* weights = panel + kScales;
      for (int64_t pair = 0; pair < kBlock / 2; ++pair, weights += 2 * kLanesOfPanel) {
        typename D::W w[kVectors];
        OUTRIDER_UNROLLED
        for (int v = 0; v < kVectors; ++v) w[v] = D::Load(weights + v * V::kLanes * 2);
        OUTRIDER_UNROLLED
        for (int t = 0; t < T; ++t) {
          const typename D::W x = D::Broadcast(q + t * columns + b * kBlock + pair * 2);
          OUTRIDER_UNROLLED
          for (int v = 0; v < kVectors; ++v) dots[t][v] = D::Step(dots[t][v], w[v], x);
        }
      }
      OUTRIDER_UNROLLED
      for (int v = 0; v < kVectors; ++v) {
        const F scale = V::LoadHalf(reinterpret_cast<const uint16_t*>(panel) + v * V::kLanes);
        OUTRIDER_UNROLLED
        for (int t = 0; t < T; ++t)
          sums[t][v] = V::MulAdd(sums[t][v], D::ToFloat(dots[t][v]), V::Mul(scale, V::Set(scales[t * blocks + b])));
      }
    }
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) OUTRIDER_UNROLLED
    for (int v = 0; v < kVectors; ++v) V::Store(out + t * kLanesOfPanel + v * V::kLanes, sums[t][v]);
  }
};

// Panels one after another, each for all tokens while it is in the cache.
template <class V, class Panel>
struct LinearWalk {
  using F = typename V::F;

  static void Finish(const PanelView& view, const LinearOutput& output, int64_t row, int64_t token, const float* sums) {
    const int64_t count = view.rows - row < kLanesOfPanel ? view.rows - row : kLanesOfPanel;
    float* y = output.y + token * output.stride + row;
    if (count == kLanesOfPanel) {
      OUTRIDER_UNROLLED
      for (int64_t i = 0; i < kLanesOfPanel; i += V::kLanes) {
        F value = V::Load(sums + i);
        if (view.bias != nullptr) value = V::Add(value, V::Load(view.bias + row + i));
        V::Store(y + i, output.add ? V::Add(V::Load(y + i), value) : value);
      }
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      float value = sums[i];
      if (view.bias != nullptr) value += view.bias[row + i];
      y[i] = output.add ? y[i] + value : value;
    }
  }

  template <int T>
  static void Tile(const PanelView& view, const TokenBlocks& tokens, int64_t panel, int64_t first,
                   const LinearOutput& output) {
    float sums[T * kLanesOfPanel];
    const std::byte* at = view.panels + panel * view.panel_bytes;
    if (first == 0)
      Panel::template Sums<T, true>(at, tokens, view.columns, first, sums);
    else
      Panel::template Sums<T, false>(at, tokens, view.columns, first, sums);
    for (int t = 0; t < T; ++t) Finish(view, output, panel * kLanesOfPanel, first + t, sums + t * kLanesOfPanel);
  }

  static void Walk(const PanelView& view, const TokenBlocks& tokens, int64_t first, int64_t last,
                   const LinearOutput& output) {
    for (int64_t panel = first; panel < last; ++panel) {
      int64_t t = 0;
      for (; t + Panel::kTokens <= tokens.count; t += Panel::kTokens)
        Tile<Panel::kTokens>(view, tokens, panel, t, output);
      if constexpr (Panel::kTokens > 4)
        for (; t + 4 <= tokens.count; t += 4) Tile<4>(view, tokens, panel, t, output);
      if constexpr (Panel::kTokens > 2)
        for (; t + 2 <= tokens.count; t += 2) Tile<2>(view, tokens, panel, t, output);
      for (; t < tokens.count; ++t) Tile<1>(view, tokens, panel, t, output);
    }
  }

  static constexpr LinearEngine Table(const char* name, QuantiseFunction quantise) {
    return {name, Panel::kNumber, &Walk, quantise};
  }
};

}  // namespace outrider::kernels
