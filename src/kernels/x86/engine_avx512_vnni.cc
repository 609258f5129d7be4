#include "kernels/linear_engine.h"
#include "kernels/token_engine.h"
#include "kernels/whole_records.h"
#include "kernels/x86/engine_sets.h"
#include "kernels/x86/vector16.h"

namespace outrider::kernels {
namespace {

// Unsigned bytes of the weights, which are shifted by 128, times signed ones of x (vpdpbusd); the sum starts with what
// the shift will have added too much.
struct Dot16 {
  static constexpr int kLinearTokens = 4;
  static constexpr int64_t kBytes = 64;
  using I = __m512i;

  static I Start(int32_t sum) { return _mm512_set1_epi32(-128 * sum); }
  static I Load(const std::byte* at) { return _mm512_loadu_si512(at); }
  static I LoadPlain(const std::byte* at) { return _mm512_loadu_si512(at); }
  static I StartAt(const int32_t* at) { return _mm512_loadu_si512(at); }
  // Of the two blocks of a vector.
  static __m512 Scales(const uint16_t* row, int64_t i) {
    int32_t pair;
    __builtin_memcpy(&pair, row + 2 * i, sizeof(pair));
    const __m512i both = _mm512_set1_epi32(pair);
    const __m512i second = _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000U)));
    return _mm512_castsi512_ps(_mm512_mask_slli_epi32(second, 0x00ff, both, 16));
  }
  static I Broadcast(const int8_t* at) {
    int32_t quad;
    __builtin_memcpy(&quad, at, sizeof(quad));
    return _mm512_set1_epi32(quad);
  }
  static I Step(I sum, I weights, I x) { return _mm512_dpbusd_epi32(sum, weights, x); }
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
