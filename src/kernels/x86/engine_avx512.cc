#include "kernels/decode_engine.h"
#include "kernels/linear_engine.h"
#include "kernels/tile_engine.h"
#include "kernels/token_engine.h"
#include "kernels/x86/engine_sets.h"
#include "kernels/x86/vector16.h"

namespace outrider::kernels {
namespace {

constexpr PrefillEngine kPrefillF32 = TileEngine<FloatForm<Vector16, false>>::Table("avx512");
constexpr PrefillEngine kPrefillBf16 = TileEngine<FloatForm<Vector16, true>>::Table("avx512");
constexpr DecodeEngine kDecodeF32 = DecodeWalk<Vector16, FloatRecords<Vector16, false>>::Table("avx512");
constexpr DecodeEngine kDecodeBf16 = DecodeWalk<Vector16, FloatRecords<Vector16, true>>::Table("avx512");

constexpr TokenEngine kToken = TokenWork<Vector16>::Table("avx512");
constexpr LinearEngine kLinearF32 = LinearWalk<Vector16, FloatPanel<Vector16, false>>::Table("avx512", nullptr);
constexpr LinearEngine kLinearBf16 = LinearWalk<Vector16, FloatPanel<Vector16, true>>::Table("avx512", nullptr);

}  // namespace

EngineSet Avx512Engines() {
  return {.prefill = {&kPrefillF32, &kPrefillBf16, nullptr},
          .decode = {&kDecodeF32, &kDecodeBf16, nullptr},
          .linear = {&kLinearF32, &kLinearBf16, nullptr},
          .token = &kToken};
}

}  // namespace outrider::kernels
