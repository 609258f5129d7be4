#include "kernels/tile_engine.h"
#include "kernels/x86/engine_sets.h"
#include "kernels/x86/vector16.h"

namespace outrider::kernels {
namespace {

// Products of pairs of bf16 (vdpbf16ps), fp32 sums.
struct PairForm {
  using V = Vector16;
  using F = V::F;
  static constexpr Number kNumber = Number::kBf16;
  static constexpr int64_t kDepth = 2;
  static constexpr bool kDirect = true;

  static F Load(const uint32_t* at) { return V::Load(reinterpret_cast<const float*>(at)); }
  static F Broadcast(const uint32_t* at) { return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*at))); }
  static F MulAdd(F sum, F a, F b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  static void PackBlock(const Segment& segment, const void* x, int64_t width, int64_t first, uint32_t* to,
                        int64_t stride) {
    for (int64_t lane = 0; lane < V::kLanes; ++lane) {
      uint32_t* column = to + lane;
      if (first + lane >= segment.count) {
        for (int64_t k = 0; k < width / 2; ++k) column[k * stride] = 0;
        continue;
      }
      const auto* row = static_cast<const uint16_t*>(x) + segment.tokens[first + lane] * width;
      for (int64_t k = 0; k < width / 2; ++k)
        column[k * stride] = static_cast<uint32_t>(row[2 * k]) | static_cast<uint32_t>(row[2 * k + 1]) << 16;
    }
  }

  static void StoreHidden(const float* from, int64_t units, int64_t stride, uint32_t* to) {
    for (int64_t u = 0; u < units; ++u) {
      for (int64_t i = 0; i < stride; i += V::kLanes) {
        const __m512i even = _mm512_srli_epi32(V::Rounded(V::Load(from + 2 * u * stride + i)), 16);
        const __m512i odd = V::Rounded(V::Load(from + (2 * u + 1) * stride + i));
        const __m512i pair = _mm512_mask_blend_epi16(0xaaaaaaaaU, even, odd);
        _mm512_storeu_si512(to + u * stride + i, pair);
      }
    }
  }

  static void PackPanel(const LayerView& layer, const Segment& segment, int64_t first, int64_t outputs, uint32_t* to) {
    const auto* records = reinterpret_cast<const uint16_t*>(layer.records);
    const auto column = [&](int64_t c) { return records + (segment.channels[c] * 3 + 2) * layer.width + first; };
    for (int64_t c = 0; c < segment.active; c += 2) {
      const uint16_t* even = column(c);
      const uint16_t* odd = c + 1 < segment.active ? column(c + 1) : nullptr;
      if (c + 6 < segment.active) {
        __builtin_prefetch(column(c + 5));
        __builtin_prefetch(column(c + 6));
      }
      for (int64_t o = 0; o < outputs; o += V::kLanes) {
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + o)));
        __m512i high = _mm512_setzero_si512();
        if (odd != nullptr) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd + o)));
        _mm512_storeu_si512(to + c / 2 * outputs + o, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
  }

  static void StoreOutput(const float* from, int64_t vectors, void* y, int64_t at) {
    for (int64_t i = 0; i < vectors * V::kLanes; i += V::kLanes)
      V::StoreBf16(static_cast<uint16_t*>(y) + at + i, V::Load(from + i));
  }
};

constexpr PrefillEngine kPrefillBf16 = TileEngine<PairForm>::Table("avx512_bf16");

}  // namespace

EngineSet Avx512Bf16Engines() { return {.prefill = {nullptr, &kPrefillBf16, nullptr}}; }

}  // namespace outrider::kernels
