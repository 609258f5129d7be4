#include "kernels/linear_engine.h"
#include "kernels/token_engine.h"
#include "kernels/whole_records.h"
#include "kernels/x86/engine_sets.h"
#include "kernels/x86/vector16.h"

namespace outrider::kernels {
namespace {

struct Dot16 {
  static constexpr int kLinearTokens = 4;
  using W = __m512i;
  using I = __m512i;

  static I Zero() { return _mm512_setzero_si512(); }
  static W Load(const std::byte* at) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static W LoadTokens(const int16_t* at) { return _mm512_loadu_si512(at); }
  static W Broadcast(const int16_t* at) {
    int32_t pair;
    __builtin_memcpy(&pair, at, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }
  static I Product(W weights, W x) { return _mm512_madd_epi16(weights, x); }
  static I Step(I sum, W weights, W x) { return _mm512_dpwssd_epi32(sum, weights, x); }
  static __m512 ToFloat(I sum) { return _mm512_cvtepi32_ps(sum); }
};

constexpr LinearEngine kLinearI8 =
    LinearWalk<Vector16, WholePanel<Vector16, Dot16>>::Table("avx512_vnni", &TokenWork<Vector16>::Quantise);

constexpr DecodeEngine kDecodeI8 = DecodeWalk<Vector16, WholeRecords<Vector16, Dot16>>::Table("avx512_vnni");

}  // namespace

EngineSet Avx512VnniEngines() {
  return {.decode = {nullptr, nullptr, &kDecodeI8}, .linear = {nullptr, nullptr, &kLinearI8}};
}

}  // namespace outrider::kernels
