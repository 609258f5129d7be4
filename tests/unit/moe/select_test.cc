#include "moe/select.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "moe/philox.h"

namespace outrider::moe {
namespace {

using testing::ElementsAre;

TEST(Select, TiesGoToTheLowerIndex) {
  EXPECT_THAT(TopChannels(std::vector<double>{1, 3, 3, 3, 2}, 2), ElementsAre(1, 2));
  EXPECT_THAT(TopChannels(std::vector<double>{0, 0, 0, 0}, 2), ElementsAre(0, 1));
  EXPECT_THAT(TopChannels(std::vector<double>{1, 2}, 0), ElementsAre());
  EXPECT_THROW(TopChannels(std::vector<double>{1, 2}, 3), base::CheckError);
  EXPECT_THROW(TopChannels(std::vector<double>{1, NAN}, 1), base::CheckError);
}

TEST(Select, AgreesWithASortWhateverTheTies) {
  for (uint32_t trial = 0; trial < 100; ++trial) {
    std::vector<std::pair<double, int64_t>> sorted;
    std::vector<double> scores;
    for (uint32_t c = 0; c < 64; ++c) {
      scores.push_back(static_cast<double>(Below(Random64(trial, Use::kTest, 0, 0, c), 9)));
      sorted.emplace_back(-scores.back(), c);
    }
    std::ranges::sort(sorted);
    std::vector<int64_t> expected;
    for (size_t i = 0; i < 32; ++i) expected.push_back(sorted[i].second);
    std::ranges::sort(expected);
    EXPECT_EQ(TopChannels(scores, 32), expected);
  }
}

TEST(Select, LayersWithOutstandingChannelsKeepMore) {
  const auto kept = TopAcrossLayers(std::vector<double>{0, 9, 0, 9, /**/ 5, 5, 5, 5}, 2, 4);
  EXPECT_THAT(kept[0], ElementsAre(1, 3));  // one deviation above their mean
  EXPECT_THAT(kept[1], ElementsAre(0, 1));  // all equal: the lower indices
  for (int64_t total = 2; total <= 8; ++total) {
    const auto some = TopAcrossLayers(std::vector<double>{0, 0, 0, 1, /**/ 8, 1, 7, 2}, 2, total);
    EXPECT_EQ(static_cast<int64_t>(some[0].size() + some[1].size()), total);
    EXPECT_GE(some[0].size(), 1);
    EXPECT_GE(some[1].size(), 1);
  }
}

TEST(Select, OverallTakesTheHighestButOneOfEveryLayer) {
  const std::vector<double> scores = {9, 8, 7, 6, 1, 2, 3, 4, 5, 0, 0, 0};
  const auto kept = TopOverall(scores, 3, 5);
  EXPECT_EQ(kept[0], (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(kept[1], std::vector<int64_t>{3});
  EXPECT_EQ(kept[2], std::vector<int64_t>{0});
}

}  // namespace
}  // namespace outrider::moe
