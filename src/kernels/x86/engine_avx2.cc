#include <immintrin.h>

#include "kernels/decode_engine.h"
#include "kernels/linear_engine.h"
#include "kernels/tile_engine.h"
#include "kernels/token_engine.h"
#include "kernels/whole_records.h"
#include "kernels/x86/engine_sets.h"

namespace outrider::kernels {
namespace {

struct Vector8 {
  static constexpr int64_t kLanes = 8, kGroup = 3, kDownTokens = 4;
  static constexpr int kLinearTokens = 2, kHeads = 3, kRecordTokens = 2, kRecordsAtOnce = 2;
  static constexpr int Pairs(int vectors) { return vectors == 1 ? 4 : vectors == 2 ? 3 : 2; }
  using F = __m256;

  static F Zero() { return _mm256_setzero_ps(); }
  static F Set(float value) { return _mm256_set1_ps(value); }
  static F Broadcast(const float* at) { return _mm256_broadcast_ss(at); }
  static F Load(const float* at) { return _mm256_loadu_ps(at); }
  static void Store(float* at, F a) { _mm256_storeu_ps(at, a); }
  static F LoadBf16(const uint16_t* at) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  // bf16 bits in the upper halves, rounded to nearest even; a NaN stays one.
  static __m256i Rounded(F a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i kept = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(kept), nan));
  }
  static F RoundBf16(F a) {
    return _mm256_castsi256_ps(_mm256_and_si256(Rounded(a), _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
  }
  static void StoreBf16(uint16_t* at, F a) {
    const __m256i words = _mm256_srli_epi32(Rounded(a), 16);
    const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_packus_epi32(low, high));
  }
  // Numbers 0, 2, 4 ... and 1, 3, 5 ...
  static void LoadPairs(const std::byte* at, F* even, F* odd) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
  }
  static F LoadWhole(const int8_t* at) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
  }
  static void StoreWhole(int16_t* at, F a) {
    const __m256i words = _mm256_cvtps_epi32(a);
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), half);
  }
  static F LoadHalf(const uint16_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F MulAdd(F c, F a, F b) { return _mm256_fmadd_ps(a, b, c); }
  static F Round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F Scale(F a, F n) {  // n is whole and 2^n a normal number
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(power));
  }
  static float Sum(F a) {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  // Sum of each.
  template <int C>
  static void Sums(const F (&a)[C], float* to) {
    for (int c = 0; c < C; ++c) to[c] = Sum(a[c]);
  }
};

struct Dot8 {
  static constexpr int kLinearTokens = 1;
  using W = __m256i;
  using I = __m256i;

  static I Zero() { return _mm256_setzero_si256(); }
  static W Load(const std::byte* at) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static W LoadTokens(const int16_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  static W Broadcast(const int16_t* at) {
    int32_t pair;
    __builtin_memcpy(&pair, at, sizeof(pair));
    return _mm256_set1_epi32(pair);
  }
  static I Product(W weights, W x) { return _mm256_madd_epi16(weights, x); }
  static I Step(I sum, W weights, W x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(weights, x)); }
  static __m256 ToFloat(I sum) { return _mm256_cvtepi32_ps(sum); }
};

constexpr PrefillEngine kPrefillF32 = TileEngine<FloatForm<Vector8, false>>::Table("avx2");
constexpr PrefillEngine kPrefillBf16 = TileEngine<FloatForm<Vector8, true>>::Table("avx2");
constexpr DecodeEngine kDecodeF32 = DecodeWalk<Vector8, FloatRecords<Vector8, false>>::Table("avx2");
constexpr DecodeEngine kDecodeBf16 = DecodeWalk<Vector8, FloatRecords<Vector8, true>>::Table("avx2");

constexpr DecodeEngine kDecodeI8 = DecodeWalk<Vector8, WholeRecords<Vector8, Dot8>>::Table("avx2");

using Token = TokenWork<Vector8>;
constexpr TokenEngine kToken = Token::Table("avx2");
constexpr LinearEngine kLinearF32 = LinearWalk<Vector8, FloatPanel<Vector8, false>>::Table("avx2", nullptr);
constexpr LinearEngine kLinearBf16 = LinearWalk<Vector8, FloatPanel<Vector8, true>>::Table("avx2", nullptr);
constexpr LinearEngine kLinearI8 = LinearWalk<Vector8, WholePanel<Vector8, Dot8>>::Table("avx2", &Token::Quantise);

}  // namespace

EngineSet Avx2Engines() {
  return {.prefill = {&kPrefillF32, &kPrefillBf16, nullptr},
          .decode = {&kDecodeF32, &kDecodeBf16, &kDecodeI8},
          .linear = {&kLinearF32, &kLinearBf16, &kLinearI8},
          .token = &kToken};
}

}  // namespace outrider::kernels
