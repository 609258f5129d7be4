// Channel records of whole numbers: what they hold, each engine of this processor against double loops over what they
// hold, and what the bits may depend on.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cpu.h"
#include "kernels/decode.h"
#include "kernels/int8_block.h"
#include "reference.h"

namespace outrider::kernels::tests {
namespace {

ChannelStore Packed(const Layer& layer, Number number) {
  const int64_t d = layer.width;
  const auto row = [d](const Numbers& from) {
    return [&from, d](int64_t c, float* to) { std::copy_n(from.values.data() + c * d, d, to); };
  };
  const ChannelSource source{layer.channels, d, row(layer.gate), row(layer.up), [&](int64_t o, float* to) {
                               std::copy_n(layer.down.values.data() + o * layer.channels, layer.channels, to);
                             }};
  return ChannelStore::Pack(source, number, layer.signatures, layer.experts).value();
}

// The layer as the records hold it.
Layer Unpacked(const ChannelStore& store, const Layer& like) {
  Layer layer = like;
  const int64_t d = like.width;
  for (int64_t c = 0; c < like.channels; ++c) {
    const std::byte* record = store.records() + c * store.record_bytes();
    const auto value = [&](int64_t part, int64_t j) {
      uint16_t scale = 0;
      std::memcpy(&scale, record + 3 * d + (part * d + j) / 32 * 2, 2);
      const float value = static_cast<float>(static_cast<int8_t>(record[part * d + j])) * FloatOfHalf(scale);
      return part == 2 ? value * store.output_scales()[j] : value;
    };
    for (int64_t j = 0; j < d; ++j) {
      layer.gate.values[static_cast<size_t>(c * d + j)] = value(0, j);
      layer.up.values[static_cast<size_t>(c * d + j)] = value(1, j);
      layer.down.values[static_cast<size_t>(j * like.channels + c)] = value(2, j);
    }
  }
  return layer;
}

std::vector<float> Compute(const ChannelStore& store, const DecodeEngine& engine, const float* x,
                           std::span<const uint8_t> experts, Workers& workers) {
  std::vector<float> y(experts.size() * static_cast<size_t>(store.width()), -3);
  Scratch scratch;
  EXPECT_TRUE(Decode(store, FloatBatch{x, y.data(), experts}, engine, scratch, workers));
  return y;
}

TEST(WholeRecords, HoldEachNumberToHalfAStep) {
  const Layer layer = RandomLayer(1, 96, 21, 3, 0.5, Number::kF32);
  const ChannelStore store = Packed(layer, Number::kI8);
  EXPECT_EQ(store.record_bytes(), 320) << "288 numbers and 18 bytes of scales, in whole lines";
  const Layer held = Unpacked(store, layer);
  const auto expect_near = [](const Numbers& a, const Numbers& b, size_t stride, size_t count) {
    // Blocks of 32 numbers, `stride` apart.
    for (size_t first = 0; first < count; ++first) {
      float most = 0;
      for (size_t i = 0; i < 32; ++i) most = std::max(most, std::abs(a.values[first + i * stride]));
      EXPECT_NEAR(a.values[first], b.values[first], most / 127 / 2 * 1.01F);
      if (stride == 1) first += 31;
    }
  };
  expect_near(layer.gate, held.gate, 1, 21 * 96);
  expect_near(layer.up, held.up, 1, 21 * 96);
  Numbers down = layer.down, held_down = held.down;  // as they were rounded
  for (size_t o = 0; o < 96; ++o) {
    double squares = 0;
    for (size_t c = 0; c < 21; ++c) squares += std::pow(layer.down.values[o * 21 + c], 2);
    EXPECT_NEAR(store.output_scales()[o], std::sqrt(squares / 21), 1e-6);
    for (size_t c = 0; c < 21; ++c) {
      down.values[o * 21 + c] /= store.output_scales()[o];
      held_down.values[o * 21 + c] /= store.output_scales()[o];
    }
  }
  expect_near(down, held_down, 21, 21);
}

TEST(WholeRecords, AScaleIsTheLowestHalfThatIsNotBelow) {
  for (const float value :
       {0.0F, 1e-9F, 3e-8F, 5e-6F, 6.1e-5F, 6.2e-5F, 1e-3F, 0.0078F, 1.0F, 1.0005F, 127.0F, 65504.0F}) {
    const uint16_t bits = HalfNotBelow(value);
    EXPECT_GE(FloatOfHalf(bits), value);
    if (bits > 0) {
      EXPECT_LT(FloatOfHalf(static_cast<uint16_t>(bits - 1)), value);
    }
  }
  EXPECT_EQ(FloatOfHalf(HalfNotBelow(1e9F)), 65504.0F);
}

TEST(WholeRecords, FloatRecordsFromASourceAreThoseOfADenseLayer) {
  for (const Number number : {Number::kF32, Number::kBf16}) {
    const Layer layer = RandomLayer(1, 64, 11, 3, 0.5, number);
    const ChannelStore store = Packed(layer, number), dense = layer.Packed();
    EXPECT_EQ(std::memcmp(store.records(), dense.records(), static_cast<size_t>(11 * store.record_bytes())), 0);
  }
}

TEST(WholeRecords, EachEngineAgreesWithDoubleLoops) {
  struct Shape {
    int64_t width, channels, experts, tokens;
  };
  Workers workers(2);
  uint32_t seed = 1;
  for (const Shape& s : {Shape{32, 7, 1, 1}, Shape{64, 50, 3, 5}, Shape{96, 97, 8, 32}, Shape{576, 211, 8, 29},
                         Shape{1056, 40, 2, 3}, Shape{32, 1131, 4, 3}}) {
    const Layer layer = RandomLayer(++seed, s.width, s.channels, s.experts, 0.5, Number::kF32);
    const ChannelStore store = Packed(layer, Number::kI8);
    const Layer held = Unpacked(store, layer);
    std::mt19937 random(seed);
    const Numbers x = RandomNumbers(random, s.tokens * s.width, 1, Number::kF32);
    Numbers rounded = x;
    std::vector<int16_t> q(x.values.size());
    std::vector<float> scales(x.values.size() / 32);
    LinearEngines(Number::kI8)
        .front()
        ->quantise(x.values.data(), static_cast<int64_t>(scales.size()), q.data(), scales.data());
    for (size_t i = 0; i < q.size(); ++i) rounded.values[i] = static_cast<float>(q[i]) * scales[i / 32];
    const auto experts = RandomExperts(seed, s.tokens, s.experts);
    const Expected expected = MaskedDense(held, rounded, experts);
    ASSERT_GE(DecodeEngines(Number::kI8).size(), 1U);
    for (const DecodeEngine* engine : DecodeEngines(Number::kI8)) {
      const auto y = Compute(store, *engine, x.values.data(), experts, workers);
      for (size_t i = 0; i < y.size(); ++i)
        ASSERT_NEAR(y[i], expected.y[i], 4e-7 * expected.products[i]) << engine->name << " at " << i;
    }
  }
}

TEST(WholeRecords, AddsToWhatStandsThere) {
  Workers workers(2);
  const Layer layer = RandomLayer(3, 96, 70, 2, 0.5, Number::kF32);
  std::mt19937 random(4);
  const Numbers x = RandomNumbers(random, 5 * 96, 1, Number::kF32),
                before = RandomNumbers(random, 5 * 96, 1, Number::kF32);
  const auto experts = RandomExperts(5, 5, 2);
  for (const Number number : {Number::kF32, Number::kBf16, Number::kI8}) {
    const ChannelStore store = Packed(layer, number);
    for (const DecodeEngine* engine : DecodeEngines(number)) {
      const auto y = Compute(store, *engine, x.values.data(), experts, workers);
      std::vector<float> sum = before.values;
      Scratch scratch;
      const FloatBatch batch{x.values.data(), sum.data(), experts, Into::kAdd};
      EXPECT_TRUE(Decode(store, batch, *engine, scratch, workers));
      for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(sum[i], before.values[i] + y[i]) << engine->name << " at " << i;
    }
  }
}

TEST(WholeRecords, ATokensBitsDependOnNeitherOtherTokensNorThreads) {
  Workers one(1), three(3);
  const Layer layer = RandomLayer(7, 96, 173, 5, 0.5, Number::kF32);
  const ChannelStore store = Packed(layer, Number::kI8);
  std::mt19937 random(8);
  const Numbers x = RandomNumbers(random, kDecodeTokensMax * 96, 1, Number::kF32);
  const auto experts = RandomExperts(9, kDecodeTokensMax, 5);
  for (const DecodeEngine* engine : DecodeEngines(Number::kI8)) {
    const auto all = Compute(store, *engine, x.values.data(), experts, one);
    for (const size_t count : {size_t{1}, size_t{2}, size_t{3}, size_t{17}, size_t{32}}) {
      for (size_t first = 0; first + count <= experts.size(); first += count + 1) {
        const auto some =
            Compute(store, *engine, x.values.data() + first * 96, std::span(experts).subspan(first, count), three);
        ASSERT_EQ(std::memcmp(some.data(), all.data() + first * 96, some.size() * 4), 0) << engine->name;
      }
    }
  }
}

}  // namespace
}  // namespace outrider::kernels::tests
