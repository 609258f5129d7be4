#include "sched/step_fit.h"

#include <gtest/gtest.h>

namespace outrider::sched {
namespace {

// A step takes 10 ms, a text 2 ms, a prompt token 1 ms; of a goal of 100 ms a step may take 80.
constexpr StepFit kFit{0.010, 0.002, 0.001};
constexpr double kGoal = 0.1;
constexpr StepLimits kLimits{.decode_tokens = 32, .prefill_tokens = 64};

TEST(StepFit, PromptsGetWhatTextsLeaveOfTheGoal) {
  EXPECT_EQ(PromptTokensWithin(kFit, kGoal, 5, kLimits), 60);
  EXPECT_EQ(PromptTokensWithin(kFit, kGoal, 20, kLimits), 30);
  EXPECT_EQ(PromptTokensWithin(kFit, kGoal, 3, kLimits), 64) << "never more than the lane";
  EXPECT_EQ(PromptTokensWithin(kFit, kGoal, 32, kLimits), 8) << "prompts go on beside texts";
  EXPECT_EQ(PromptTokensWithin(kFit, 0.001, 1, kLimits), 8) << "whatever the goal";
}

TEST(StepFit, NothingIsBoundWithoutGoalFitOrText) {
  EXPECT_EQ(PromptTokensWithin(kFit, 0, 30, kLimits), 64);
  EXPECT_EQ(PromptTokensWithin({}, kGoal, 30, kLimits), 64);
  EXPECT_EQ(PromptTokensWithin(kFit, 0.001, 0, kLimits), 64);
  EXPECT_EQ(TextsWithin(kFit, 0, 77, kLimits), 77);
  EXPECT_EQ(TextsWithin({}, kGoal, 77, kLimits), 77);
  EXPECT_TRUE(GoalHasRoom(kFit, 0, kLimits));
  EXPECT_TRUE(GoalHasRoom({}, kGoal, kLimits));
}

TEST(StepFit, AsManyTextsAsAStepOfTheGoalTakes) {
  EXPECT_EQ(TextsWithin(kFit, kGoal, 64, kLimits), 31) << "(80 - 10 - 8) / 2";
  EXPECT_EQ(TextsWithin(kFit, kGoal, 7, kLimits), 7);
  EXPECT_EQ(TextsWithin(kFit, 10 * kGoal, 64, kLimits), 32) << "a step takes no more";
  EXPECT_EQ(TextsWithin(kFit, 0.001, 64, kLimits), 1) << "somebody runs";
  EXPECT_TRUE(GoalHasRoom(kFit, 0.025, kLimits));
  EXPECT_FALSE(GoalHasRoom(kFit, 0.0249, kLimits)) << "10 + 2 + 8 of 0.8 of it";
}

// What the bounds are for, over many fits and goals: where the goal has room for the least step, no step is longer.
TEST(StepFit, StepsWithinTheBoundsAreWithinTheGoal) {
  int bound = 0;
  for (const double step_s : {0.0, 0.004, 0.05})
    for (const double text_s : {0.0, 1e-4, 0.003})
      for (const double prompt_token_s : {0.0, 2e-5, 2e-3})
        for (const double goal_s : {0.01, 0.05, 0.2}) {
          const StepFit fit{step_s, text_s, prompt_token_s};
          if (!fit.Known() || !GoalHasRoom(fit, goal_s, kLimits)) continue;
          const int64_t texts_max = TextsWithin(fit, goal_s, 64, kLimits);
          for (int64_t texts = 1; texts <= texts_max; ++texts) {
            const int64_t tokens = PromptTokensWithin(fit, goal_s, texts, kLimits);
            EXPECT_LE(fit.Seconds(texts, tokens), kGoalShare * goal_s + 1e-12);
            bound += tokens < kLimits.prefill_tokens ? 1 : 0;
          }
        }
  EXPECT_GT(bound, 50);
}

TEST(StepFit, TheRateOfPrompts) {
  EXPECT_DOUBLE_EQ(PromptTokensPerS(kFit, kGoal, 20, kLimits), 30 / 0.080);
  EXPECT_DOUBLE_EQ(PromptTokensPerS(kFit, 0, 20, kLimits), 64 / 0.114);
  EXPECT_DOUBLE_EQ(PromptTokensPerS(kFit, kGoal, 0, kLimits), 64 / 0.074);
  EXPECT_EQ(PromptTokensPerS({}, kGoal, 20, kLimits), 0);
}

// A pass of prompts takes 10 ms and 0.1 ms a token: 16.4 for the lane, of which an eighth is 2.05.
constexpr StepFit kApart{0.010, 0.002, 0.0001, 0.010};

TEST(StepFit, PassesWithASetupArePaidByManySteps) {
  EXPECT_DOUBLE_EQ(kApart.Seconds(5, 0), 0.020);
  EXPECT_DOUBLE_EQ(kApart.Seconds(5, 10), 0.031);
  EXPECT_NEAR(PromptSecondsWithin(kApart, kGoal, 32, kLimits), 0.080 - 0.074, 1e-12);
  EXPECT_DOUBLE_EQ(PromptSecondsWithin(kApart, kGoal, 5, kLimits), 0.0164) << "a whole lane in each step";
  EXPECT_DOUBLE_EQ(PromptSecondsWithin(kApart, 0.001, 5, kLimits), 0.0164 / 8) << "whatever the goal";
  EXPECT_DOUBLE_EQ(PromptSecondsWithin(kApart, 0, 5, kLimits), 0.0164) << "no goal";
  EXPECT_DOUBLE_EQ(PromptSecondsWithin(kApart, 0.001, 0, kLimits), 0.0164) << "nobody writes";
  EXPECT_DOUBLE_EQ(PromptSecondsWithin(kFit, kGoal, 20, kLimits), 0.030) << "without a setup each step has its own";
  EXPECT_EQ(TextsWithin(kApart, 0.05, 64, kLimits), 13) << "(40 - 10 - 2.05) / 2";
  EXPECT_TRUE(GoalHasRoom(kApart, 0.0176, kLimits));
  EXPECT_FALSE(GoalHasRoom(kApart, 0.0175, kLimits)) << "10 + 2 + 2.05 of 0.8 of it";
  EXPECT_NEAR(PromptTokensPerS(kApart, kGoal, 32, kLimits), 64 * (6 / 16.4) / 0.080, 1e-9);
  EXPECT_NEAR(PromptTokensPerS(kApart, 0, 5, kLimits), 64 / 0.0364, 1e-9);
}

TEST(StepFit, PlacesAreFreeAsTextsEnd) {
  Line line{.running = 10, .texts_max = 12, .ahead = 1, .text_tokens = 50, .step_s = 0.1};
  EXPECT_EQ(PlaceWaitS(line), 0) << "the twelfth";
  line.ahead = 2;
  EXPECT_DOUBLE_EQ(PlaceWaitS(line), 50 * 0.1 / 10);
  line.ahead = 4;
  EXPECT_DOUBLE_EQ(PlaceWaitS(line), 3 * 50 * 0.1 / 10);
  line.running = 0;
  EXPECT_EQ(PlaceWaitS(line), 0);
}

}  // namespace
}  // namespace outrider::sched
