#include "plan/early_cuts.h"

#include <gtest/gtest.h>

#include <algorithm>
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

TEST(EarlyCuts, SizesCountFromTheFirstOp) {
  const std::vector<int> end_ops = {101, 103, 104, 110};
  EXPECT_EQ(FindEarlyCuts(end_ops, 100), std::vector<char>({0, 0, 1, 1}));
}

TEST(EqualCuts, PartsAreOfOneSize) {
  std::vector<int> end_ops(100);
  std::iota(end_ops.begin(), end_ops.end(), 11);
  const auto cuts = FindEqualCuts(end_ops, 10, 4);
  EXPECT_EQ(std::accumulate(cuts.begin(), cuts.end(), 0), 3);
  EXPECT_EQ(cuts[24], 1);
  EXPECT_EQ(cuts[49], 1);
  EXPECT_EQ(cuts[74], 1);
}

TEST(EqualCuts, OneLargeEventIsNotCutInTwo) {
  const std::vector<int> end_ops = {1, 100, 101};
  EXPECT_EQ(FindEqualCuts(end_ops, 0, 4), std::vector<char>({0, 1, 0}));
}

TEST(EqualCuts, TheEndIsNoCut) {
  EXPECT_TRUE(FindEqualCuts({}, 0, 4).empty());
  const std::vector<int> end_ops = {5, 5, 5};
  EXPECT_EQ(FindEqualCuts(end_ops, 5, 4), std::vector<char>({0, 0, 0}));
  EXPECT_EQ(FindEqualCuts(end_ops, 0, 4), std::vector<char>({0, 0, 0}));
}

TEST(StepCuts, NoneAtABackwardPassAndFreshOnesBehindIt) {
  const std::vector<int> end_ops = {4, 8, 12, 16, 40, 44, 48, 52, 56};
  const StepCuts cuts = FindStepCuts(end_ops, 4);
  EXPECT_EQ(cuts.early, std::vector<char>({1, 1, 1, 1, 0, 1, 1, 1, 1}));
  EXPECT_EQ(cuts.graph, std::vector<char>({1, 1, 1, 0, 0, 1, 1, 1, 0}));
}

TEST(StepCuts, WithoutABackwardPassTheWholeStepIsATail) {
  const std::vector<int> end_ops = {4, 8};
  EXPECT_EQ(FindStepCuts(end_ops, -1).early, std::vector<char>({1, 1}));
  EXPECT_EQ(FindStepCuts(end_ops, 0).early, std::vector<char>({0, 1}));
  EXPECT_TRUE(FindStepCuts({}, -1).graph.empty());
}

TEST(HeadCut, FollowsTheBytesNotTheOps) {
  std::vector<int> end_ops(20);
  std::iota(end_ops.begin(), end_ops.end(), 1);
  std::vector<size_t> bytes(20, 1);  // sixteen casts of weights, then layers
  std::fill(bytes.begin() + 16, bytes.end(), 100);
  EXPECT_EQ(FindHeadCut(end_ops, bytes, 1.0 / 8), 16);
  EXPECT_EQ(FindHeadCut(end_ops, bytes, 1.0 / 2), 17);
}

TEST(HeadCut, IsAtTheEndOfAnEventAndNotAtTheLastOp) {
  const std::vector<size_t> bytes(40, 8);
  EXPECT_EQ(FindHeadCut(std::vector<int>{0, 20, 20, 40}, bytes, 1.0 / 8), 1);
  EXPECT_EQ(FindHeadCut(std::vector<int>{40, 40}, bytes, 1.0 / 8), -1);
  EXPECT_EQ(FindHeadCut({}, {}, 1.0 / 8), -1);
}

TEST(HeadCut, HasSomeOps) {
  EXPECT_EQ(FindHeadCut(std::vector<int>{1, 2, 8, 9, 10}, std::vector<size_t>(10, 8), 1.0 / 8), 2);
  EXPECT_EQ(FindHeadCut(std::vector<int>{1, 2, 4}, std::vector<size_t>(4, 8), 1.0 / 8), -1);
}

// What the backward pass and all behind it make does not count.
TEST(HeadCut, LooksNoFurtherThanTheEventsGiven) {
  std::vector<size_t> bytes(41, 8);
  bytes.back() = 1'000'000;
  EXPECT_EQ(FindHeadCut(std::vector<int>{10, 20, 30, 40}, bytes, 1.0 / 4), 0);
}

// The number of ranges that can occur stays small however long the forward pass is.
TEST(EarlyCuts, LongPassesGetLargerParts) {
  std::vector<int> end_ops(100'000);
  std::iota(end_ops.begin(), end_ops.end(), 1);
  const auto cuts = FindEarlyCuts(end_ops, 0, {.ops_min = 4, .parts_of_a_size = 16});
  EXPECT_EQ(std::accumulate(cuts.begin(), cuts.begin() + 64, 0), 16);
  EXPECT_EQ(std::accumulate(cuts.begin() + 64, cuts.begin() + 192, 0), 16);
  EXPECT_LT(std::accumulate(cuts.begin(), cuts.end(), 0), 200);
}

}  // namespace
}  // namespace outrider::plan
