#include "plan/read_habit.h"

#include <gtest/gtest.h>

namespace outrider::plan {
namespace {

int NotesUntil(ReadHabit& habit, bool read, bool waits) {
  for (int notes = 0; notes < 20; ++notes) {
    if (habit.WaitsEachStep() == waits) return notes;
    habit.Note(read);
  }
  return -1;
}

TEST(ReadHabit, MostOfTheLastStepsDecide) {
  ReadHabit habit;
  EXPECT_FALSE(habit.WaitsEachStep());
  EXPECT_EQ(NotesUntil(habit, true, true), 6);
  EXPECT_EQ(NotesUntil(habit, false, false), 5);
}

TEST(ReadHabit, ReadingNowAndThenIsNone) {
  ReadHabit habit;
  for (int step = 0; step < 100; ++step) {
    habit.Note(step % 10 == 9);
    EXPECT_FALSE(habit.WaitsEachStep());
  }
}

TEST(ReadHabit, OneStepDoesNotBreakIt) {
  ReadHabit habit;
  NotesUntil(habit, true, true);
  for (int step = 0; step < 100; ++step) {
    habit.Note(step % 10 != 9);
    EXPECT_TRUE(habit.WaitsEachStep());
  }
}

}  // namespace
}  // namespace outrider::plan
