// Both forms, each engine of this processor, against the masked dense FFN; and what their bits may depend on.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <string>

#include "kernels/cpu.h"
#include "kernels/decode.h"
#include "kernels/prefill.h"
#include "reference.h"

namespace outrider::kernels::tests {
namespace {

using Form = std::function<base::Result<void>(const ChannelStore&, const FfnBatch&, Workers&)>;

struct Case {
  std::string name;
  Number number;
  bool decode;
  Form form;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const Number number : {Number::kF32, Number::kBf16}) {
    const std::string suffix = number == Number::kF32 ? " fp32" : " bf16";
    for (const PrefillEngine* engine : PrefillEngines(number))
      cases.push_back({std::string("prefill ") + engine->name + suffix, number, false,
                       [engine](const ChannelStore& store, const FfnBatch& batch, Workers& workers) {
                         Scratch scratch;
                         return Prefill(store, batch, *engine, scratch, workers);
                       }});
    for (const DecodeEngine* engine : DecodeEngines(number))
      cases.push_back({std::string("decode ") + engine->name + suffix, number, true,
                       [engine](const ChannelStore& store, const FfnBatch& batch, Workers& workers) {
                         Scratch scratch;
                         return Decode(store, batch, *engine, scratch, workers);
                       }});
  }
  return cases;
}

// y as bytes; starts as a pattern, so that an output that nobody writes is seen.
std::vector<std::byte> Compute(const Case& c, const ChannelStore& store, const void* x,
                               std::span<const uint8_t> experts, Workers& workers) {
  std::vector<std::byte> y(experts.size() * static_cast<size_t>(store.width() * BytesOf(c.number)), std::byte{0x7f});
  EXPECT_TRUE(c.form(store, {x, y.data(), experts}, workers));
  return y;
}

float ValueAt(const std::vector<std::byte>& y, Number number, size_t i) {
  float value = 0;
  uint16_t bits = 0;
  if (number == Number::kF32) {
    std::memcpy(&value, y.data() + 4 * i, 4);
    return value;
  }
  std::memcpy(&bits, y.data() + 2 * i, 2);
  return FloatOf(bits);
}

void ExpectClose(const Case& c, const std::vector<std::byte>& y, const Expected& expected) {
  // Sums are fp32 throughout; for bf16, hidden numbers and outputs are rounded to 8 significant bits.
  const double rounded = c.number == Number::kF32 ? 0 : 1.0 / 240;
  for (size_t i = 0; i < expected.y.size(); ++i) {
    const double tolerance = 4e-7 * expected.products[i] + rounded * (expected.terms[i] + std::abs(expected.y[i]));
    ASSERT_NEAR(ValueAt(y, c.number, i), expected.y[i], tolerance) << c.name << " at " << i;
  }
}

struct Shape {
  int64_t width, channels, experts, tokens;
  double share;
};

TEST(TiedFfn, AgreesWithTheMaskedDenseFfn) {
  const Shape shapes[] = {{32, 7, 1, 1, 1},       {64, 50, 3, 5, 0.5},   {96, 97, 8, 32, 0.5},
                          {576, 211, 8, 29, 0.5}, {64, 130, 2, 75, 0.7}, {160, 49, 16, 80, 0.3},
                          {32, 1, 2, 33, 0.9},    {64, 96, 1, 64, 1},    {32, 1131, 4, 3, 0.5}};
  Workers workers(2);
  uint32_t seed = 1;
  for (const Shape& shape : shapes) {
    for (const Case& c : Cases()) {
      const Layer layer = RandomLayer(++seed, shape.width, shape.channels, shape.experts, shape.share, c.number);
      const int64_t tokens = c.decode ? std::min(shape.tokens, kDecodeTokensMax) : shape.tokens;
      std::mt19937 random(seed);
      const Numbers x = RandomNumbers(random, tokens * shape.width, 1, c.number);
      const auto experts = RandomExperts(seed, tokens, shape.experts);
      ExpectClose(c, Compute(c, layer.Packed(), x.data(), experts, workers), MaskedDense(layer, x, experts));
    }
  }
}

// Each token alone, every batch that starts with it, and any number of threads: the same bits.
TEST(TiedFfn, ATokensBitsDependOnNeitherOtherTokensNorThreads) {
  Workers one(1), three(3);
  for (const Case& c : Cases()) {
    const int64_t width = 96, tokens = c.decode ? kDecodeTokensMax : 150;
    const Layer layer = RandomLayer(7, width, 173, 5, 0.5, c.number);
    const ChannelStore store = layer.Packed();
    std::mt19937 random(8);
    const Numbers x = RandomNumbers(random, tokens * width, 1, c.number);
    const auto experts = RandomExperts(9, tokens, 5);
    const auto all = Compute(c, store, x.data(), experts, one);
    EXPECT_EQ(all, Compute(c, store, x.data(), experts, three)) << c.name;
    const auto row_bytes = static_cast<size_t>(width * BytesOf(c.number));
    const auto* rows = static_cast<const std::byte*>(x.data());
    for (const size_t count : {size_t{1}, size_t{2}, size_t{3}, size_t{17}, size_t{31}}) {
      for (size_t first = 0; first + count <= experts.size(); first += 2 * count + 5) {
        const auto some = Compute(c, store, rows + first * row_bytes, std::span(experts).subspan(first, count), three);
        ASSERT_EQ(std::memcmp(some.data(), all.data() + first * row_bytes, some.size()), 0)
            << c.name << ": tokens " << first << " to " << first + count;
      }
    }
  }
}

// What other experts' channels hold does not reach a token, not even as 0 times infinity.
TEST(TiedFfn, ChannelsOfOtherExpertsAreNotTouched) {
  Workers workers(1);
  for (const Case& c : Cases()) {
    Layer layer = RandomLayer(3, 64, 40, 2, 0.5, c.number);
    for (Signature& signature : layer.signatures)
      if (signature == 0) signature = 1;
    const auto experts = std::vector<uint8_t>{0, 1, 0, 1, 1};
    std::mt19937 random(4);
    const Numbers x = RandomNumbers(random, 5 * 64, 1, c.number);
    const auto before = Compute(c, layer.Packed(), x.data(), experts, workers);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (size_t channel = 0; channel < 40; ++channel) {
      if (layer.signatures[channel] != 2) continue;  // of expert 1 alone
      for (size_t j = 0; j < 64; ++j) {
        layer.gate.values[channel * 64 + j] = nan;
        layer.down.values[j * 40 + channel] = nan;
        if (c.number == Number::kF32) continue;
        layer.gate.bits[channel * 64 + j] = layer.down.bits[j * 40 + channel] = Bf16Of(nan);
      }
    }
    const auto after = Compute(c, layer.Packed(), x.data(), experts, workers);
    const size_t row_bytes = 64 * static_cast<size_t>(BytesOf(c.number));
    for (size_t t = 0; t < experts.size(); ++t) {
      const bool same = std::memcmp(before.data() + t * row_bytes, after.data() + t * row_bytes, row_bytes) == 0;
      EXPECT_EQ(same, experts[t] == 0) << c.name << " token " << t;
    }
  }
}

TEST(TiedFfn, AnExpertWithoutChannelsGivesZero) {
  Workers workers(2);
  for (const Case& c : Cases()) {
    Layer layer = RandomLayer(5, 32, 20, 3, 0.6, c.number);
    for (Signature& signature : layer.signatures) signature &= 5;
    std::mt19937 random(6);
    const Numbers x = RandomNumbers(random, 3 * 32, 1, c.number);
    const auto y = Compute(c, layer.Packed(), x.data(), std::vector<uint8_t>{1, 0, 1}, workers);
    for (size_t i = 0; i < 32; ++i) {
      EXPECT_EQ(ValueAt(y, c.number, i), 0) << c.name;
      EXPECT_EQ(ValueAt(y, c.number, 64 + i), 0) << c.name;
    }
  }
}

// Gates far out: silu saturates, and nothing overflows.
TEST(TiedFfn, LargeGatesStayFinite) {
  Workers workers(1);
  for (const Case& c : Cases()) {
    Layer layer = RandomLayer(11, 32, 12, 1, 1, c.number);
    for (size_t i = 0; i < layer.gate.values.size(); ++i) {
      layer.gate.values[i] *= 4096;
      if (c.number == Number::kBf16) layer.gate.bits[i] = Bf16Of(layer.gate.values[i]);
    }
    std::mt19937 random(12);
    const Numbers x = RandomNumbers(random, 9 * 32, 1, c.number);
    const std::vector<uint8_t> experts(9, 0);
    ExpectClose(c, Compute(c, layer.Packed(), x.data(), experts, workers), MaskedDense(layer, x, experts));
  }
}

TEST(TiedFfn, UnknownExpertsAreRefusedAndNothingIsWritten) {
  Workers workers(1);
  for (const Case& c : Cases()) {
    const ChannelStore store = RandomLayer(1, 32, 8, 3, 0.5, c.number).Packed();
    const std::vector<std::byte> x(2 * 32 * 4);
    std::vector<std::byte> y(2 * 32 * 4, std::byte{0x55});
    const auto before = y;
    const auto result = c.form(store, {x.data(), y.data(), std::vector<uint8_t>{0, 3}}, workers);
    ASSERT_FALSE(result) << c.name;
    EXPECT_EQ(result.error().code, "E_EXPERTS");
    EXPECT_EQ(result.error().message, "token 1: expert 3, expected less than 3");
    EXPECT_EQ(y, before);
    EXPECT_TRUE(c.form(store, {x.data(), y.data(), {}}, workers)) << c.name << ": no tokens";
  }
}

TEST(Decode, RefusesMoreTokensThanAStepHolds) {
  Workers workers(1);
  Scratch scratch;
  const ChannelStore store = RandomLayer(1, 32, 8, 3, 0.5, Number::kF32).Packed();
  const std::vector<uint8_t> experts(static_cast<size_t>(kDecodeTokensMax) + 1, 0);
  std::vector<float> x(experts.size() * 32), y(x.size());
  const auto result = Decode(store, {x.data(), y.data(), experts}, scratch, workers);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, "E_SHAPE");
}

}  // namespace
}  // namespace outrider::kernels::tests
