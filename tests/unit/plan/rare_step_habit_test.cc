#include "plan/rare_step_habit.h"

#include <gtest/gtest.h>

#include <vector>

namespace outrider::plan {
namespace {

// The steps up to `count` that are expected when those of `unknown` are none of a known path.
std::vector<uint64_t> Expected(const std::vector<uint64_t>& unknown, uint64_t count) {
  RareStepHabit habit;
  std::vector<uint64_t> expected;
  size_t next = 0;
  for (uint64_t step = 1; step <= count; ++step) {
    if (habit.Expects(step)) expected.push_back(step);
    if (next == unknown.size() || unknown[next] != step) continue;
    habit.NoteUnknown(step);
    ++next;
  }
  return expected;
}

TEST(RareStepHabit, TwoEqualGapsAreAHabit) {
  EXPECT_EQ(Expected({5, 10, 15, 20}, 40), (std::vector<uint64_t>{20, 25}));
  EXPECT_EQ(Expected({7, 107, 207}, 400), std::vector<uint64_t>{307});
  EXPECT_TRUE(Expected({5, 10}, 40).empty());
}

TEST(RareStepHabit, NoHabitWithoutARhythm) {
  EXPECT_TRUE(Expected({3, 8, 14, 21, 29}, 60).empty());
  EXPECT_TRUE(Expected({4, 5, 6, 7, 8}, 60).empty()) << "steps in a row are recorded anyway";
}

TEST(RareStepHabit, AnotherRhythmIsLearntBesideTheFirst) {
  EXPECT_EQ(Expected({10, 20, 30, 34, 38, 42}, 60), (std::vector<uint64_t>{40, 42, 46}));
}

TEST(RareStepHabit, RhythmsMayBeInterleaved) {
  EXPECT_EQ(Expected({8, 13, 16, 24, 26, 39}, 60), (std::vector<uint64_t>{32, 52}));
  EXPECT_EQ(Expected({7, 8, 15, 16, 23, 24}, 40), std::vector<uint64_t>{31}) << "of two in a row, the first";
}

TEST(RareStepHabit, WhatDoesNotComeIsForgotten) {
  RareStepHabit habit;
  for (const uint64_t step : {6, 12, 18}) habit.NoteUnknown(step);
  EXPECT_TRUE(habit.Expects(24));
  EXPECT_FALSE(habit.Expects(25));
  habit.NoteUnknown(40);
  EXPECT_FALSE(habit.Expects(62));
}

}  // namespace
}  // namespace outrider::plan
