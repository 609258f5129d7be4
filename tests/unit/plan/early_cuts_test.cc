#include "plan/early_cuts.h"

#include <gtest/gtest.h>

#include <numeric>

namespace outrider::plan {
namespace {

TEST(EarlyCuts, NothingBeforeBackwardIsNotCut) { EXPECT_TRUE(FindEarlyCuts({}).empty()); }

TEST(EarlyCuts, EventsWithoutDeviceOpsAreNotCut) {
  const std::vector<int> end_ops = {0, 0, 3, 3};
  EXPECT_EQ(FindEarlyCuts(end_ops), std::vector<char>({0, 0, 0, 0}));
}

TEST(EarlyCuts, PartsHaveTheLeastSize) {
  const std::vector<int> end_ops = {1, 3, 4, 5, 10, 13, 14};
  EXPECT_EQ(FindEarlyCuts(end_ops), std::vector<char>({0, 0, 1, 0, 1, 0, 1}));
}

// The number of ranges that can occur stays small however long the forward pass is.
TEST(EarlyCuts, LongPassesGetLargerParts) {
  std::vector<int> end_ops(100'000);
  std::iota(end_ops.begin(), end_ops.end(), 1);
  const auto cuts = FindEarlyCuts(end_ops, {.ops_min = 4, .parts_of_a_size = 16});
  EXPECT_EQ(std::accumulate(cuts.begin(), cuts.begin() + 64, 0), 16);
  EXPECT_EQ(std::accumulate(cuts.begin() + 64, cuts.begin() + 192, 0), 16);
  EXPECT_LT(std::accumulate(cuts.begin(), cuts.end(), 0), 200);
}

}  // namespace
}  // namespace outrider::plan
