#pragma once
// Sixteen fp32 lanes of AVX-512. Only for units compiled for it: everything here is internal to the unit.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace outrider::kernels {
namespace {

struct Vector16 {
  static constexpr int64_t kLanes = 16, kGroup = 4, kDownTokens = 8;
  static constexpr int kLinearTokens = 8, kHeads = 4, kRecordTokens = 4, kRecordsAtOnce = 4;
  static constexpr int Pairs(int vectors) { return vectors == 1 ? 8 : vectors == 2 ? 6 : vectors == 3 ? 4 : 3; }
  using F = __m512;

  static F Zero() { return _mm512_setzero_ps(); }
  static F Set(float value) { return _mm512_set1_ps(value); }
  static F Broadcast(const float* at) { return _mm512_set1_ps(*at); }
  static F Load(const float* at) { return _mm512_loadu_ps(at); }
  static void Store(float* at, F a) { _mm512_storeu_ps(at, a); }
  static F LoadBf16(const uint16_t* at) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  // bf16 bits in the upper halves, rounded to nearest even; a NaN stays one.
  static __m512i Rounded(F a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
  }
  static F RoundBf16(F a) {
    return _mm512_castsi512_ps(_mm512_and_si512(Rounded(a), _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
  }
  static void StoreBf16(uint16_t* at, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtepi32_epi16(_mm512_srli_epi32(Rounded(a), 16)));
  }
  // Numbers 0, 2, 4 ... and 1, 3, 5 ...
  static void LoadPairs(const std::byte* at, F* even, F* odd) {
    const __m512i pairs = _mm512_loadu_si512(at);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
  }
  static F LoadWhole(const int8_t* at) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
  }
  static void StoreWhole(int16_t* at, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
  }
  static F LoadHalf(const uint16_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F MulAdd(F c, F a, F b) { return _mm512_fmadd_ps(a, b, c); }
  static F Round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F Scale(F a, F n) { return _mm512_scalef_ps(a, n); }
  static float Sum(F a) { return _mm512_reduce_add_ps(a); }  // halves added, and again, down to one
  // Sum of each, in the same order.
  static void Sums(const F (&a)[4], float* to) {
    const F ab = Halves(a[0], a[1]), cd = Halves(a[2], a[3]);
    F all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
    const __m512i first = _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12));
    _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, all)));
  }
  static F Halves(F a, F b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
};

}  // namespace
}  // namespace outrider::kernels
