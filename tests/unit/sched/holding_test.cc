#include "sched/holding.h"

#include <gtest/gtest.h>

#include "base/check.h"

namespace outrider::sched {
namespace {

constexpr HoldingCase kCase{.experts = 7, .distinct_experts = 3, .running = 33, .decode_tokens = 16};

TEST(Holding, BoundIsTheFormula) {
  EXPECT_EQ(DelayBound(5, kCase), 5 + 2 + 2);
  EXPECT_EQ(DelayBound(5, {.experts = 7, .distinct_experts = 0, .running = 1, .decode_tokens = 1}), 5);
  EXPECT_EQ(DelayBound(0, {.experts = 0, .distinct_experts = 3, .running = 9, .decode_tokens = 4}), 2);
  EXPECT_THROW(DelayBound(1, {}), base::CheckError);
}

TEST(Holding, AgeLeavesRoomForTheBoundAndTheStepItself) {
  EXPECT_EQ(HoldingAge(0.105, 0.01, kCase), 10 - 2 - 2 - 1);
  EXPECT_LE(0.01 * static_cast<double>(DelayBound(HoldingAge(0.105, 0.01, kCase), kCase) + 1), 0.105);
}

TEST(Holding, IsOffWhereTheGoalLeavesNoRoom) {
  EXPECT_EQ(HoldingAge(0.05, 0.01, kCase), 0);
  EXPECT_EQ(HoldingAge(0.01, 0.05, kCase), 0);
  EXPECT_EQ(HoldingAge(0, 0.05, kCase), 0);
  EXPECT_EQ(HoldingAge(0.1, 0, kCase), 0);  // nothing measured yet
}

TEST(Holding, AHugeGoalIsCut) { EXPECT_EQ(HoldingAge(1e300, 1e-9, kCase), 1'000'000 - 5); }

TEST(Holding, PromptsAreHeldByTheChunkAndOnlyBehindOthers) {
  StepLimits limits{.decode_tokens = 16, .prefill_tokens = 100, .prompt_hold_max = 8};
  EXPECT_EQ(PromptHoldSteps(limits, 100, 17), 8);
  EXPECT_EQ(PromptHoldSteps(limits, 101, 17), 16);
  EXPECT_EQ(PromptHoldSteps(limits, 101, 16), 0) << "all that run before it fit one step";
  limits.prefill_age_max = 5;
  EXPECT_EQ(PromptHoldSteps(limits, 101, 17), 10);
  limits.prefill_age_max = 50;
  EXPECT_EQ(PromptHoldAge(limits), 8);
  limits.prompt_hold_max = 0;
  EXPECT_EQ(PromptHoldSteps(limits, 101, 17), 0);
}

}  // namespace
}  // namespace outrider::sched
