#include "sched/outrider_policy.h"

#include <gtest/gtest.h>

#include "plan_text.h"
#include "sched/baselines.h"
#include "sched/expert_choice.h"
#include "sched/violations.h"
#include "support/expert_bytes.h"
#include "support/snapshot_case.h"

namespace outrider::sched {
namespace {

// Three experts; 0 and 1 are nearly the same, 2 has nothing in common with them.
SnapshotCase Overlapping() {
  SnapshotCase c(3, {0, 100, 100, 105, 100, 200, 200, 205});
  c.fixed_bytes = 20;
  c.limits = {.decode_tokens = 8, .prefill_tokens = 8, .distinct_experts = 2, .age_max = 4, .prefill_age_max = 4};
  c.limits.hold_gain_min = 1;
  return c;
}

std::string Plan(const SnapshotCase& c) {
  const StepPlan plan = PlanOutrider(c.Get());
  EXPECT_EQ(Violations(c.Get(), plan), std::vector<std::string>{});
  EXPECT_EQ(OutriderViolations(c.Get(), plan), std::vector<std::string>{});
  return Text(plan);
}

TEST(Outrider, ChoosesByBytesNotByCount) {
  // Experts 0 and 1 together read hardly more than one of them; two items against three of expert 2.
  EXPECT_EQ(Plan(Overlapping().Decode(0).Decode(1).Decode(2).Decode(2).Decode(0)), "d0 d1 d4 | held 2 3 | experts 3");
}

TEST(Outrider, OneItemIsNeverHeld) { EXPECT_EQ(Plan(Overlapping().Decode(2)), "d0 | held | experts 4"); }

TEST(Outrider, OverdueItemsComeFirst) {
  SnapshotCase c = Overlapping();
  c.step = 10;
  c.limits.distinct_experts = 1;
  c.Decode(0, 10).Decode(0, 10).Decode(0, 10).Decode(2, 6);
  EXPECT_EQ(Plan(c), "d3 | held 0 1 2 | experts 4");
}

TEST(Outrider, HoldingCanBeSwitchedOff) {
  SnapshotCase c = Overlapping();
  c.limits.age_max = 0;
  c.Decode(0).Decode(1).Decode(2).Decode(2).Decode(0);
  EXPECT_EQ(Plan(c), Text(PlanChunkedFcfs(c.Get())));
}

TEST(Outrider, AllExpertsWithoutALimit) {
  SnapshotCase c = Overlapping();
  c.limits.distinct_experts = 0;
  c.fixed_bytes = 10'000;  // what a step costs anyway is so much that every token counts
  c.Decode(0).Decode(1).Decode(2);
  EXPECT_EQ(Plan(c), "d0 d1 d2 | held | experts 7");
}

TEST(Outrider, FullBudgetTakesTheOldest) {
  SnapshotCase c = Overlapping();
  c.step = 3;
  c.limits.decode_tokens = 2;
  c.Decode(0, 3).Decode(0, 1).Decode(0, 2).Decode(2, 0);
  EXPECT_EQ(Plan(c), "d1 d2 | held | experts 1");
}

TEST(Outrider, HeldItemsRideWithPrompts) {
  SnapshotCase c = Overlapping();
  c.Decode(0).Decode(1).Decode(0).Decode(2).Prompt({2, 2});
  EXPECT_EQ(Plan(c), "d0 d1 d2 d3 p4:2 | held | experts 7");
}

TEST(Outrider, PrefersPromptsOfExpertsThatAreRead) {
  SnapshotCase c = Overlapping();
  c.limits.prefill_tokens = 2;
  c.Decode(0).Prompt({2, 2}).Prompt({0, 0});
  EXPECT_EQ(Plan(c), "d0 p2:2 | held | experts 1");
  c.limits.prefill_age_max = 0;  // in order of arrival
  EXPECT_EQ(Plan(c), "d0 p1:2 | held | experts 5");
}

TEST(Outrider, AnOverduePromptIsNotOvertaken) {
  SnapshotCase c = Overlapping();
  c.step = 4;
  c.limits.prefill_tokens = 2;
  c.Decode(0, 4).Prompt({2, 2}).Prompt({0, 0}, 4);
  EXPECT_EQ(Plan(c), "d0 p1:2 | held | experts 5");
}

TEST(Outrider, CutsChunksAtTheLimitOnBytes) {
  SnapshotCase c = Overlapping();
  c.limits.ffn_bytes_max = 110;
  c.Decode(0).Prompt({0, 1, 1, 2, 0});
  EXPECT_EQ(Plan(c), "d0 p1:3 | held | experts 3");
  c.limits.ffn_bytes_max = 0;
  EXPECT_EQ(Plan(c), "d0 p1:5 | held | experts 7");
}

TEST(Outrider, APromptThatDoesNotFitIsHeldUntilOverdue) {
  SnapshotCase c = Overlapping();
  c.limits.ffn_bytes_max = 110;
  c.Decode(0, 3).Prompt({2, 2, 1});
  c.step = 3;
  EXPECT_EQ(Plan(c), "d0 | held 1 | experts 1");
  c.step = 4;  // now its first token runs in any case, and those of the same expert with it
  EXPECT_EQ(Plan(c), "d0 p1:2 | held | experts 5");
}

TEST(Outrider, AnEmptyStepAlwaysTakesAPrompt) {
  SnapshotCase c = Overlapping();
  c.limits.ffn_bytes_max = 10;
  c.Prompt({2, 1});
  EXPECT_EQ(Plan(c), "p0:1 | held | experts 4");
}

SnapshotCase Crowded() {
  SnapshotCase c = Overlapping();
  c.step = 5;
  c.limits.decode_tokens = 2;
  c.limits.prompt_hold_max = 6;
  c.bytes_per_s = 1e9;
  c.token_s = 1;  // only tokens take time: two of a prompt add as much as the others take
  c.limits.prefill_age_max = 0;
  c.Decode(0, 5).Decode(0, 5).Decode(0, 5);
  return c;
}

TEST(Outrider, PromptsWaitWhileMoreDecodeItemsAreReadyThanAStepTakes) {
  EXPECT_EQ(Plan(Crowded().Prompt({0, 0}, 2)), "d0 d1 | held 3 | experts 1");
  EXPECT_EQ(Plan(Crowded().Prompt({0, 0}, 1)), "d0 d1 p3:2 | held | experts 1") << "four times what it adds: a step";
  EXPECT_EQ(Plan(Crowded().Prompt({0}, 3)), "d0 d1 p3:1 | held | experts 1") << "four times half a step";
  EXPECT_EQ(Plan(Crowded().Prompt({0, 0}, 0).Prompt({2}, 5)), "d0 d1 | held 3 4 | experts 1") << "both add more";
  SnapshotCase most = Crowded();
  most.limits.prompt_hold_max = 5;
  EXPECT_EQ(Plan(most.Prompt({0, 0}, 0).Prompt({2}, 5)), "d0 d1 p3:2 p4:1 | held | experts 5");
  EXPECT_EQ(Plan(Crowded().Prompt({0, 0}, 3, 1)), "d0 d1 p3:2 | held | experts 1") << "it has priority";
  SnapshotCase c = Crowded();
  c.limits.decode_tokens = 3;
  EXPECT_EQ(Plan(c.Prompt({0, 0}, 3)), "d0 d1 d2 p3:2 | held | experts 1") << "nobody waits";
  c = Crowded();
  c.token_s = 0;
  EXPECT_EQ(Plan(c.Prompt({0, 0}, 5)), "d0 d1 p3:2 | held | experts 1") << "it costs no time";
  c = Crowded();
  c.limits.prompt_hold_max = 0;
  EXPECT_EQ(Plan(c.Prompt({0, 0}, 5)), "d0 d1 p3:2 | held | experts 1") << "switched off";
  c = Crowded();
  c.limits.prefill_age_max = 2;
  EXPECT_EQ(Plan(c.Prompt({0, 0}, 3)), "d0 d1 p3:2 | held | experts 1") << "overdue in its lane";
}

// A second of a pass for itself, beside three texts whose steps take half a second; a prompt a second comes.
SnapshotCase Apart() {
  SnapshotCase c = Overlapping();
  c.step = 20;
  c.limits.decode_tokens = 8;
  c.limits.prefill_tokens = 4;
  c.limits.prompt_hold_max = 10;
  c.limits.prefill_age_max = 0;
  c.prompt_pass = {.setup_s = 1, .prompts_per_s = 1, .step_s = 0.5};
  c.Decode(0, 20).Decode(0, 20).Decode(0, 20);
  return c;
}

TEST(Outrider, PromptsWaitForMoreToShareTheirPass) {
  EXPECT_EQ(Plan(Apart().Prompt({0, 0}, 20)), "d0 d1 d2 | held 3 | experts 1");
  EXPECT_EQ(Plan(Apart().Prompt({0, 0}, 15)), "d0 d1 d2 | held 3 | experts 1") << "2.5 s of 3";
  EXPECT_EQ(Plan(Apart().Prompt({0, 0}, 14)), "d0 d1 d2 p3:2 | held | experts 1") << "as long as the pass costs them";
  EXPECT_EQ(Plan(Apart().Prompt({0}, 17).Prompt({0}, 17)), "d0 d1 d2 p3:1 p4:1 | held | experts 1") << "both, together";
  EXPECT_EQ(Plan(Apart().Prompt({0, 0, 0}, 20).Prompt({0}, 20)), "d0 d1 d2 p3:3 p4:1 | held | experts 1") << "full";
  EXPECT_EQ(Plan(Apart().Prompt({0, 0}, 20, 1)), "d0 d1 d2 p3:2 | held | experts 1") << "it has priority";
  SnapshotCase c = Apart();
  c.prompt_pass.prompts_per_s = 0.37;
  EXPECT_EQ(Plan(c.Prompt({0, 0}, 20)), "d0 d1 d2 p3:2 | held | experts 1") << "1.48 times what it costs";
  c = Apart();
  c.prompt_pass.prompts_per_s = 0.38;
  EXPECT_EQ(Plan(c.Prompt({0, 0}, 20)), "d0 d1 d2 | held 3 | experts 1") << "1.52 times";
  c = Apart();
  c.prompt_pass.setup_s = 100;
  EXPECT_EQ(Plan(c.Prompt({0, 0}, 10)), "d0 d1 d2 p3:2 | held | experts 1") << "ten steps are the most";
  c = Apart();
  c.prompt_pass.setup_s = 0;
  EXPECT_EQ(Plan(c.Prompt({0, 0}, 20)), "d0 d1 d2 p3:2 | held | experts 1") << "no pass of their own";
  c = Apart();
  c.limits.prompt_hold_max = 0;
  EXPECT_EQ(Plan(c.Prompt({0, 0}, 20)), "d0 d1 d2 p3:2 | held | experts 1") << "switched off";
  SnapshotCase nobody = Overlapping();
  nobody.limits.prompt_hold_max = 10;
  nobody.prompt_pass = {.setup_s = 1, .prompts_per_s = 100, .step_s = 0.5};
  EXPECT_EQ(Plan(nobody.Prompt({0, 0}, 0)), "p0:2 | held | experts 1") << "nobody writes";
}

TEST(Outrider, DenseModelsAreServedInOrder) {
  SnapshotCase c(0, {100});
  c.limits = {.decode_tokens = 2, .prefill_tokens = 4, .distinct_experts = 1, .age_max = 3, .prefill_age_max = 3};
  c.limits.ffn_bytes_max = 1;
  c.Decode(0).Decode(0).Decode(0).Prompt({0, 0});
  EXPECT_EQ(Plan(c), "d0 d1 p3:2 | held | experts 0");
}

TEST(ExpertChoice, TiesGoToFewerBytesThenToTheLowerPattern) {
  SnapshotCase c(2, {0, 100, 100, 200});
  c.limits = {.decode_tokens = 4, .distinct_experts = 2, .hold_gain_min = 1};
  const std::vector<int64_t> ready{1, 1};
  EXPECT_EQ(ChooseExperts(c.Get(), 0, ready), 1);        // 1/100, 1/100, 2/200
  EXPECT_EQ(ChooseExperts(c.Get(), 0b10, ready), 0b10);  // forced
}

TEST(ExpertChoice, CountsNoMoreThanTheBudget) {
  SnapshotCase c(2, {0, 100, 60, 160});
  c.limits = {.decode_tokens = 2, .distinct_experts = 2};
  const std::vector<int64_t> ready{9, 2};
  EXPECT_EQ(ChooseExperts(c.Get(), 0, ready), 0b10);  // two tokens either way
}

TEST(ExpertChoice, UsesMeasuredRates) {
  SnapshotCase c(2, {0, 100, 100, 200});
  c.limits = {.decode_tokens = 8, .distinct_experts = 2, .hold_gain_min = 1};
  c.fixed_bytes = 40;
  const std::vector<int64_t> ready{3, 2};
  c.bytes_per_s = 1;
  EXPECT_EQ(ChooseExperts(c.Get(), 0, ready), 0b01);  // 3/140 against 5/240
  c.fixed_bytes = 60;
  EXPECT_EQ(ChooseExperts(c.Get(), 0, ready), 0b11);  // 3/160 against 5/260
  c.token_s = 1e6;                                    // tokens cost all: both equal but for the bytes of each token
  EXPECT_EQ(ChooseExperts(c.Get(), 0, ready), 0b11);
}

TEST(ExpertChoice, HoldsForALargeGainOnlyWhereAllWouldFit) {
  SnapshotCase c(2, {0, 100, 100, 200});
  c.limits = {.decode_tokens = 8, .distinct_experts = 2};
  const std::vector<int64_t> ready{6, 2};  // 6/100 against 8/200: half as much again
  c.limits.hold_gain_min = 1.5;
  EXPECT_EQ(ChooseExperts(c.Get(), 0, ready), 0b01);
  c.limits.hold_gain_min = 1.51;
  EXPECT_EQ(ChooseExperts(c.Get(), 0, ready), 0b11);
  c.limits.decode_tokens = 7;  // not all fit: somebody waits anyway
  EXPECT_EQ(ChooseExperts(c.Get(), 0, ready), 0b01);
  c.limits.decode_tokens = 8;
  c.limits.distinct_experts = 1;
  EXPECT_EQ(ChooseExperts(c.Get(), 0, ready), 0b01);
}

TEST(ExpertChoice, GreedyAdditionsOfManyExperts) {
  constexpr int64_t kExperts = 12;
  SnapshotCase c(kExperts, OverlappingBytes(kExperts, 0.3, 1));
  c.limits = {.decode_tokens = 64, .distinct_experts = 3};  // all do not fit K
  c.fixed_bytes = 1'000'000;
  const std::vector<int64_t> ready{1, 1, 1, 9, 1, 8, 1, 1, 7, 1, 1, 1};
  EXPECT_EQ(ChooseExperts(c.Get(), 0, ready), 1 << 3 | 1 << 5 | 1 << 8);
  EXPECT_EQ(ChooseExperts(c.Get(), 1 << 11, ready), 1 << 3 | 1 << 5 | 1 << 11);
}

}  // namespace
}  // namespace outrider::sched
