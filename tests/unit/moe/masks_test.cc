#include "moe/masks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/check.h"
#include "moe/block_table.h"
#include "moe/philox.h"
#include "moe/signature_order.h"

namespace outrider::moe {
namespace {

using testing::ElementsAre;

Masks RandomMasks(uint32_t seed, int64_t experts, int64_t layers, int64_t channels) {
  Masks masks(experts, layers, channels);
  for (int64_t l = 0; l < layers; ++l) {
    std::vector<Signature> row;
    for (int64_t c = 0; c < channels; ++c) {
      const uint64_t bits = Random64(seed, Use::kTest, 0, static_cast<uint32_t>(l), static_cast<uint32_t>(c));
      row.push_back(static_cast<Signature>(bits & (bits >> 20) & masks.Full()));
    }
    masks.SetLayer(l, row);
  }
  return masks;
}

TEST(Masks, CountsOfAHandMadeLayer) {
  Masks masks(3, 1, 6);
  masks.SetExpert(0, 0, std::vector<int64_t>{0, 1, 2});
  masks.SetExpert(0, 1, std::vector<int64_t>{0, 2, 4});
  masks.SetExpert(0, 2, std::vector<int64_t>{0, 1, 4});
  EXPECT_THAT(masks.Layer(0), ElementsAre(7, 5, 3, 0, 6, 0));
  const LayerCounts counts = masks.Count(0);
  EXPECT_EQ(counts.permanent, 1);
  EXPECT_EQ(counts.united, 4);
  EXPECT_EQ(counts.dead, 2);
  EXPECT_EQ(counts.live_signatures, 4);
  EXPECT_THAT(counts.active, ElementsAre(3, 3, 3));
  EXPECT_EQ(masks.Delta(0, 0, 1), 1);  // channel 4
  EXPECT_EQ(masks.Delta(0, 1, 2), 1);  // channel 1
  EXPECT_EQ(masks.Delta(0, 2, 2), 0);
  EXPECT_DOUBLE_EQ(masks.MeanDelta(0), 1);  // every pair shares two of three
}

TEST(Masks, SettingAnExpertReplacesItsChannelsAndLeavesTheOthers) {
  Masks masks(2, 2, 3);
  masks.SetExpert(1, 0, std::vector<int64_t>{0, 1});
  masks.SetExpert(1, 1, std::vector<int64_t>{1});
  masks.SetExpert(1, 0, std::vector<int64_t>{2});
  EXPECT_THAT(masks.ChannelsOf(1, 0), ElementsAre(2));
  EXPECT_THAT(masks.ChannelsOf(1, 1), ElementsAre(1));
  EXPECT_THAT(masks.ChannelsOf(0, 0), ElementsAre());
}

TEST(Masks, HashTellsMasksAndShapesApart) {
  const Masks masks = RandomMasks(1, 4, 2, 30);
  EXPECT_EQ(masks.Hash(), RandomMasks(1, 4, 2, 30).Hash());
  EXPECT_NE(masks.Hash(), RandomMasks(2, 4, 2, 30).Hash());
  EXPECT_NE(Masks(4, 2, 30).Hash(), Masks(4, 3, 20).Hash());
}

TEST(Masks, RefusesWhatDoesNotFit) {
  EXPECT_THROW(Masks(17, 1, 1), base::CheckError);
  Masks masks(2, 1, 2);
  EXPECT_THROW(masks.SetExpert(0, 2, {}), base::CheckError);
  EXPECT_THROW(masks.SetExpert(0, 0, std::vector<int64_t>{2}), base::CheckError);
  EXPECT_THROW(masks.SetLayer(0, std::vector<Signature>{4, 0}), base::CheckError);
}

TEST(SignatureOrder, VisitsEverySignatureOnceByOneBitMoves) {
  for (int64_t n = 1; n <= kOrderedExpertsMax; ++n) {
    const std::vector<Signature> order = BalancedOrder(n);
    EXPECT_EQ(order.size(), size_t{1} << n);
    EXPECT_EQ(std::set<Signature>(order.begin(), order.end()).size(), order.size());
    EXPECT_EQ(order.front(), 0);
    for (size_t i = 1; i < order.size(); ++i) EXPECT_EQ(std::popcount<unsigned>(order[i] ^ order[i - 1]), 1);
  }
}

TEST(SignatureOrder, NoExpertIsCutIntoManyRuns) {
  std::vector<int64_t> seven;
  for (int64_t i = 0; i < 7; ++i) seven.push_back(RunsOf(BalancedOrder(7), i));
  EXPECT_THAT(seven, ElementsAre(10, 10, 10, 10, 8, 10, 7));
  for (int64_t n = 1; n <= kOrderedExpertsMax; ++n) {
    // A bit that moves m times has at most ceil(m / 2) runs; one move of slack over the even share.
    const int64_t share = ((int64_t{1} << n) - 1 + n - 1) / n + 1;
    const std::vector<Signature> order = BalancedOrder(n);
    for (int64_t i = 0; i < n; ++i) EXPECT_LE(RunsOf(order, i), (share + 1) / 2) << n << " experts, expert " << i;
  }
}

TEST(SignatureOrder, LeavingSignaturesOutAddsNoRun) {
  const std::vector<Signature> order = BalancedOrder(7);
  for (uint32_t trial = 0; trial < 50; ++trial) {
    std::vector<Signature> some;
    for (const Signature s : order) {
      if ((Random64(3, Use::kTest, trial, 0, s) & 3) != 0) some.push_back(s);
    }
    for (int64_t i = 0; i < 7; ++i) EXPECT_LE(RunsOf(some, i), RunsOf(order, i));
  }
}

TEST(BlockTable, LaysOutEveryChannelOnce) {
  for (uint32_t trial = 0; trial < 60; ++trial) {
    const int64_t experts = 1 + trial % 12, channels = 1 + trial * 7 % 90, page = 1 + trial % 5;
    const Masks masks = RandomMasks(trial, experts, 1, channels);
    const LayerLayout layout = LayOut(masks, 0, page);
    const std::set<int32_t> seen(layout.permutation.begin(), layout.permutation.end());
    EXPECT_EQ(static_cast<int64_t>(seen.size()), channels);
    EXPECT_EQ(*seen.begin(), 0);
    EXPECT_EQ(*seen.rbegin(), channels - 1);
    int64_t offset = 0;
    std::set<Signature> signatures;
    for (const Block& block : layout.blocks) {
      EXPECT_EQ(block.offset, offset);
      EXPECT_TRUE(signatures.insert(block.signature).second) << "a signature has one block";
      EXPECT_LT((block.pages - 1) * page, block.channels);
      EXPECT_GE(block.pages * page, block.channels);
      EXPECT_TRUE(block.signature != 0 || &block == &layout.blocks.back()) << "dead channels come last";
      for (int64_t p = 0; p < block.channels; ++p, ++offset) {
        EXPECT_EQ(masks.Layer(0)[layout.permutation[offset]], block.signature);
        EXPECT_TRUE(p == 0 || layout.permutation[offset - 1] < layout.permutation[offset]) << "ascending inside";
      }
    }
    EXPECT_EQ(offset, channels);
    EXPECT_EQ(static_cast<int64_t>(signatures.size()) - (signatures.contains(0) ? 1 : 0),
              masks.Count(0).live_signatures);
  }
}

TEST(BlockTable, PermutedMasksKeepTheirCounts) {
  const Masks masks = RandomMasks(9, 5, 3, 40);
  std::vector<LayerLayout> layouts;
  for (int64_t l = 0; l < 3; ++l) layouts.push_back(LayOut(masks, l, 1));
  const Masks stored = Permuted(masks, layouts);
  for (int64_t l = 0; l < 3; ++l) {
    EXPECT_EQ(stored.Count(l), masks.Count(l));
    for (int64_t i = 0; i < 5; ++i) {
      int64_t runs = 0;
      for (int64_t c = 0; c < 40; ++c) runs += stored.Has(l, i, c) && (c == 0 || !stored.Has(l, i, c - 1)) ? 1 : 0;
      EXPECT_LE(runs, RunsOf(BalancedOrder(5), i) + 1);
    }
  }
}

}  // namespace
}  // namespace outrider::moe
