#include "plan/refusal_habit.h"

#include <gtest/gtest.h>

namespace outrider::plan {
namespace {

TEST(RefusalHabit, FourAlikeAreAHabitThatLasts) {
  RefusalHabit habit;
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(habit.Note("INNER_FOREIGN: a"));
  EXPECT_TRUE(habit.Note("INNER_FOREIGN: a"));
  EXPECT_TRUE(habit.Note("INNER_FOREIGN: a"));
}

TEST(RefusalHabit, AnotherReasonOrNoneBeginsAnew) {
  RefusalHabit habit;
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(habit.Note("INNER_FOREIGN: a"));
  EXPECT_FALSE(habit.Note("INNER_HOOK: b"));
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(habit.Note("INNER_HOOK: b"));
  EXPECT_FALSE(habit.Note(""));
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(habit.Note("INNER_HOOK: b"));
  EXPECT_TRUE(habit.Note("INNER_HOOK: b"));
}

TEST(RefusalHabit, RecordingsThatOnlyDisagreeAreNone) {
  RefusalHabit habit;
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(habit.Note(""));
}

}  // namespace
}  // namespace outrider::plan
