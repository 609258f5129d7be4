#include "kernels/channel_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "reference.h"

namespace outrider::kernels::tests {
namespace {

using testing::ElementsAre;

TEST(ChannelStore, ARecordIsGateUpAndDownOfOneChannel) {
  for (const Number number : {Number::kF32, Number::kBf16}) {
    const Layer layer = RandomLayer(1, 64, 5, 2, 0.5, number);
    const ChannelStore store = layer.Packed();
    ASSERT_EQ(store.record_bytes(), 3 * 64 * BytesOf(number));
    for (size_t c = 0; c < 5; ++c) {
      for (size_t j = 0; j < 64; ++j) {
        const float expected[] = {layer.gate.values[c * 64 + j], layer.up.values[c * 64 + j],
                                  layer.down.values[j * 5 + c]};
        for (size_t part = 0; part < 3; ++part) {
          const size_t at = (c * 3 + part) * 64 + j;
          const float stored = number == Number::kF32 ? reinterpret_cast<const float*>(store.records())[at]
                                                      : FloatOf(reinterpret_cast<const uint16_t*>(store.records())[at]);
          EXPECT_EQ(stored, expected[part]);
        }
      }
    }
  }
}

TEST(ChannelStore, ListsNameEachExpertsChannelsInStoredOrder) {
  Layer layer = RandomLayer(1, 32, 6, 3, 0.5, Number::kF32);
  layer.signatures = {0, 5, 1, 7, 2, 4};
  const ChannelStore store = layer.Packed();
  EXPECT_THAT(store.ChannelsOf(0), ElementsAre(1, 2, 3));
  EXPECT_THAT(store.ChannelsOf(1), ElementsAre(3, 4));
  EXPECT_THAT(store.ChannelsOf(2), ElementsAre(1, 3, 5));
  EXPECT_EQ(store.experts(), 3);
  EXPECT_EQ(store.channels(), 6);
}

TEST(ChannelStore, BadShapesAreNamed) {
  const std::vector<float> numbers(40 * 4);
  const auto pack = [&](int64_t channels, int64_t width, std::vector<Signature> signatures, int64_t experts) {
    const DenseFfn dense{numbers.data(), numbers.data(), numbers.data(), Number::kF32, channels, width};
    return ChannelStore::Pack(dense, signatures, experts).error();
  };
  EXPECT_EQ(pack(4, 40, {0, 0, 0, 0}, 1).message,
            "4 channels of width 40: expected at least one channel and a multiple of 32");
  EXPECT_EQ(pack(0, 32, {}, 1).code, "E_SHAPE");
  EXPECT_EQ(pack(4, 32, {1, 1}, 1).message, "2 signatures, expected one for each of 4 channels");
  EXPECT_EQ(pack(2, 32, {1, 4}, 2).message, "channel 1 has signature 4, but there are 2 experts");
  EXPECT_EQ(pack(2, 32, {1, 1}, 17).code, "E_EXPERTS");
}

}  // namespace
}  // namespace outrider::kernels::tests
