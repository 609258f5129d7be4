#include "kernels/decode_engine.h"
#include "kernels/tile_engine.h"
#include "kernels/x86/engine_sets.h"
#include "kernels/x86/vector16.h"

namespace outrider::kernels {
namespace {

constexpr PrefillEngine kPrefillF32 = TileEngine<FloatForm<Vector16, false>>::Table("avx512");
constexpr PrefillEngine kPrefillBf16 = TileEngine<FloatForm<Vector16, true>>::Table("avx512");
constexpr DecodeEngine kDecodeF32 = DecodeWalk<Vector16, false>::Table("avx512");
constexpr DecodeEngine kDecodeBf16 = DecodeWalk<Vector16, true>::Table("avx512");

}  // namespace

EngineSet Avx512Engines() { return {{&kPrefillF32, &kPrefillBf16}, {&kDecodeF32, &kDecodeBf16}}; }

}  // namespace outrider::kernels
