// The engines of every machine: four lanes in plain C++, which compilers turn into whatever the target has.
#include "kernels/decode_engine.h"
#include "kernels/linear_engine.h"
#include "kernels/tile_engine.h"
#include "kernels/token_engine.h"
#include "kernels/whole_records.h"

namespace outrider::kernels {
namespace {

struct Vector4 {
  static constexpr int64_t kLanes = 4, kGroup = 2, kDownTokens = 4;
  static constexpr int kLinearTokens = 1, kHeads = 1, kRecordTokens = 1, kRecordsAtOnce = 1;
  static constexpr int Pairs(int vectors) { return vectors == 1 ? 3 : 2; }
  using F = float __attribute__((vector_size(16)));  // a type of GCC and clang on every target

  template <class Op>
  static F Each(Op op) {
    return F{op(0), op(1), op(2), op(3)};
  }
  static F Set(float value) { return F{value, value, value, value}; }
  static F Zero() { return Set(0); }
  static F Broadcast(const float* at) { return Set(*at); }
  static F Load(const float* at) {
    F result;
    __builtin_memcpy(&result, at, sizeof(F));
    return result;
  }
  static void Store(float* at, F a) { __builtin_memcpy(at, &a, sizeof(F)); }
  static uint16_t Rounded(float value) {
    const auto bits = __builtin_bit_cast(uint32_t, value);
    if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
    return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
  }
  static float Widened(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }
  static F LoadBf16(const uint16_t* at) {
    return Each([&](int i) { return Widened(at[i]); });
  }
  static void StoreBf16(uint16_t* at, F a) {
    for (int i = 0; i < 4; ++i) at[i] = Rounded(a[i]);
  }
  // Numbers 0, 2, 4 ... and 1, 3, 5 ...
  static void LoadPairs(const std::byte* at, F* even, F* odd) {
    uint16_t bits[8];
    __builtin_memcpy(bits, at, sizeof(bits));
    *even = Each([&](int i) { return Widened(bits[2 * i]); });
    *odd = Each([&](int i) { return Widened(bits[2 * i + 1]); });
  }
  static F LoadWhole(const int8_t* at) {
    return Each([&](int i) { return static_cast<float>(at[i]); });
  }
  static void StoreWhole(int16_t* at, F a) {
    for (int i = 0; i < 4; ++i) at[i] = static_cast<int16_t>(a[i]);
  }
  // Of half-precision numbers that are not negative.
  static F LoadHalf(const uint16_t* at) {
    return Each([&](int i) {
      const uint32_t bits = at[i];
      if (bits < 0x400) return static_cast<float>(bits) * 0x1p-24F;
      return __builtin_bit_cast(float, (bits << 13) + (112U << 23));
    });
  }
  static F RoundBf16(F a) {
    return Each([&](int i) { return Widened(Rounded(a[i])); });
  }
  static F Add(F a, F b) { return a + b; }
  static F Mul(F a, F b) { return a * b; }
  static F Div(F a, F b) { return a / b; }
  static F Min(F a, F b) {
    return Each([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
  }
  static F Max(F a, F b) {
    return Each([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
  }
  static F MulAdd(F c, F a, F b) { return c + a * b; }
  // |a| < 2^22: adding and taking away 1.5 * 2^23 leaves the nearest whole number.
  static F Round(F a) {
    return Each([&](int i) {
      const float shifted = a[i] + 12582912.0F;
      return shifted - 12582912.0F;
    });
  }
  static F Scale(F a, F n) {
    return Each([&](int i) {
      return a[i] * __builtin_bit_cast(float, static_cast<uint32_t>(static_cast<int32_t>(n[i]) + 127) << 23);
    });
  }
  static float Sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  // Sum of each.
  template <int C>
  static void Sums(const F (&a)[C], float* to) {
    for (int c = 0; c < C; ++c) to[c] = Sum(a[c]);
  }
};

struct Dot4 {
  static constexpr int kLinearTokens = 1;
  using W = int16_t __attribute__((vector_size(16)));
  using I = int32_t __attribute__((vector_size(16)));

  static I Zero() { return I{0, 0, 0, 0}; }
  static W Load(const std::byte* at) {
    W result{};
    for (int i = 0; i < 8; ++i) result[i] = static_cast<int8_t>(at[i]);
    return result;
  }
  static W LoadTokens(const int16_t* at) {
    W result;
    __builtin_memcpy(&result, at, sizeof(W));
    return result;
  }
  static W Broadcast(const int16_t* at) { return W{at[0], at[1], at[0], at[1], at[0], at[1], at[0], at[1]}; }
  static I Product(W weights, W x) { return Step(Zero(), weights, x); }
  static I Step(I sum, W weights, W x) {
    for (int i = 0; i < 4; ++i) sum[i] += weights[2 * i] * x[2 * i] + weights[2 * i + 1] * x[2 * i + 1];
    return sum;
  }
  static Vector4::F ToFloat(I sum) {
    return Vector4::Each([&](int i) { return static_cast<float>(sum[i]); });
  }
};

constexpr PrefillEngine kPrefillF32 = TileEngine<FloatForm<Vector4, false>>::Table("portable");
constexpr PrefillEngine kPrefillBf16 = TileEngine<FloatForm<Vector4, true>>::Table("portable");
constexpr DecodeEngine kDecodeF32 = DecodeWalk<Vector4, FloatRecords<Vector4, false>>::Table("portable");
constexpr DecodeEngine kDecodeBf16 = DecodeWalk<Vector4, FloatRecords<Vector4, true>>::Table("portable");

constexpr DecodeEngine kDecodeI8 = DecodeWalk<Vector4, WholeRecords<Vector4, Dot4>>::Table("portable");

using Token = TokenWork<Vector4>;
constexpr TokenEngine kToken = Token::Table("portable");
constexpr LinearEngine kLinearF32 = LinearWalk<Vector4, FloatPanel<Vector4, false>>::Table("portable", nullptr);
constexpr LinearEngine kLinearBf16 = LinearWalk<Vector4, FloatPanel<Vector4, true>>::Table("portable", nullptr);
constexpr LinearEngine kLinearI8 = LinearWalk<Vector4, WholePanel<Vector4, Dot4>>::Table("portable", &Token::Quantise);

}  // namespace

EngineSet PortableEngines() {
  return {.prefill = {&kPrefillF32, &kPrefillBf16, nullptr},
          .decode = {&kDecodeF32, &kDecodeBf16, &kDecodeI8},
          .linear = {&kLinearF32, &kLinearBf16, &kLinearI8},
          .token = &kToken};
}

}  // namespace outrider::kernels
