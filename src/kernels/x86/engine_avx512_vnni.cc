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
  static __m512 Factors(const float* blocks, int64_t i) {
    const __m512 first = _mm512_set1_ps(blocks[2 * i]);
    return _mm512_mask_broadcastss_ps(first, 0xff00, _mm_load_ss(blocks + 2 * i + 1));
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
