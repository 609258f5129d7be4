#include "serve/prompt_budget.h"

#include <gtest/gtest.h>

namespace outrider::serve {
namespace {

// A pass takes 10 ms and 0.1 ms a token, 16.4 for the lane.
constexpr sched::StepFit kFit{0.010, 0.002, 0.0001, 0.010};
constexpr sched::StepLimits kLimits{.decode_tokens = 32, .prefill_tokens = 64};

TEST(PromptBudget, StepsSaveForAWholePass) {
  PromptBudget budget;
  for (int step = 1; step <= 4; ++step)
    EXPECT_EQ(budget.Next(0.0035, kFit, 500, kLimits), 0) << step << ": 16.4 are needed";
  EXPECT_EQ(budget.Next(0.0035, kFit, 500, kLimits), 64);
  budget.Spent(0.0164);
  EXPECT_EQ(budget.Next(0.0035, kFit, 500, kLimits), 0) << "it is spent";
}

TEST(PromptBudget, FewTokensNeedLess) {
  PromptBudget budget;
  EXPECT_EQ(budget.Next(0.0105, kFit, 6, kLimits), 0) << "10.6 are needed";
  EXPECT_EQ(budget.Next(0.0001, kFit, 6, kLimits), 64) << "and the lane is theirs";
}

TEST(PromptBudget, NoMoreThanOnePassIsSaved) {
  PromptBudget budget;
  for (int step = 0; step < 50; ++step) budget.Next(0.0164, kFit, 0, kLimits);
  EXPECT_EQ(budget.Next(0, kFit, 64, kLimits), 64);
  budget.Spent(0.0164);
  EXPECT_EQ(budget.Next(0.001, kFit, 64, kLimits), 0);
  budget.Spent(0.5);
  for (int step = 0; step < 2; ++step)
    EXPECT_EQ(budget.Next(0.0163, kFit, 64, kLimits), 0) << "a pass that took long is paid back";
  EXPECT_EQ(budget.Next(0.0163, kFit, 64, kLimits), 64) << "as far as one more pass";
}

TEST(PromptBudget, WithoutABoundEachStepMayHaveOne) {
  PromptBudget budget;
  for (int step = 0; step < 5; ++step) {
    EXPECT_EQ(budget.Next(kFit.PromptSeconds(64), kFit, 64, kLimits), 64);
    budget.Spent(0.0164 * (1 + 0.1 * step));  // passes that take longer are nobody's debt
  }
}

}  // namespace
}  // namespace outrider::serve
