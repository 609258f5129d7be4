#include "sched/baselines.h"

#include <gtest/gtest.h>

#include "plan_text.h"
#include "sched/policies.h"
#include "sched/readme_greedy.h"
#include "support/snapshot_case.h"

namespace outrider::sched {
namespace {

SnapshotCase TwoExperts() { return SnapshotCase(2, {0, 100, 100, 150}); }

TEST(Policies, AreFoundByName) {
  EXPECT_EQ(Policies().size(), 5);
  EXPECT_EQ(FindPolicy("chunked_fcfs"), &PlanChunkedFcfs);
  EXPECT_EQ(FindPolicy("readme_greedy"), &PlanReadmeGreedy);
  EXPECT_EQ(FindPolicy("none"), nullptr);
}

TEST(Policies, PlanNothingFromNothing) {
  const SnapshotCase nothing = TwoExperts();
  for (const NamedPolicy& named : Policies()) EXPECT_EQ(named.policy(nothing.Get()), StepPlan{}) << named.name;
}

TEST(ChunkedFcfs, FillsBothLanesInOrder) {
  SnapshotCase c = TwoExperts();
  c.step = 5;
  c.limits = {.decode_tokens = 2, .prefill_tokens = 4};
  c.Prompt({0, 1, 0}).Decode(0, 4).Decode(1, 3).Prompt({1, 1}).Decode(1, 4);
  EXPECT_EQ(Text(PlanChunkedFcfs(c.Get())), "d2 d1 p0:3 p3:1 | held | experts 3");
}

TEST(ChunkedFcfs, HigherPriorityGoesFirst) {
  SnapshotCase c = TwoExperts();
  c.step = 5;
  c.limits = {.decode_tokens = 1, .prefill_tokens = 1};
  c.Prompt({0, 1, 0}).Decode(0, 1).Decode(1, 3, 1).Prompt({1, 1}, 0, 1);
  EXPECT_EQ(Text(PlanChunkedFcfs(c.Get())), "d2 p3:1 | held | experts 2");
}

TEST(DecodeFirst, PromptsGetWhatDecodeItemsLeave) {
  SnapshotCase c = TwoExperts();
  c.limits = {.decode_tokens = 4, .prefill_tokens = 5};
  c.Prompt({0, 0, 0, 0, 0, 0}).Decode(0).Decode(0);
  EXPECT_EQ(Text(PlanDecodeFirst(c.Get())), "d1 d2 p0:3 | held | experts 1");
}

TEST(PrefillFirst, DecodeItemsWaitForPrompts) {
  SnapshotCase c = TwoExperts();
  c.limits = {.decode_tokens = 4, .prefill_tokens = 5};
  c.Decode(1).Prompt({0, 0});
  EXPECT_EQ(Text(PlanPrefillFirst(c.Get())), "p1:2 | held | experts 1");
  SnapshotCase no_prompt = TwoExperts();
  no_prompt.limits = c.limits;
  no_prompt.Decode(1);
  EXPECT_EQ(Text(PlanPrefillFirst(no_prompt.Get())), "d0 | held | experts 2");
}

TEST(Baselines, ServeDenseModels) {
  SnapshotCase c(0, {100});
  c.limits = {.decode_tokens = 1, .prefill_tokens = 2};
  c.Decode(0).Decode(0).Prompt({0, 0, 0});
  EXPECT_EQ(Text(PlanChunkedFcfs(c.Get())), "d0 p2:2 | held | experts 0");
  EXPECT_EQ(Text(PlanReadmeGreedy(c.Get())), "d0 p2:2 | held | experts 0");
}

TEST(ReadmeGreedy, TakesTheLongestQueueFirst) {
  SnapshotCase c = TwoExperts();
  c.limits = {.decode_tokens = 3, .prefill_tokens = 0};
  c.Decode(0).Decode(1).Decode(1).Decode(0).Decode(1);
  EXPECT_EQ(Text(PlanReadmeGreedy(c.Get())), "d1 d2 d4 | held | experts 2");
}

TEST(ReadmeGreedy, QueuesOnlyTheNextRunOfAPrompt) {
  SnapshotCase c = TwoExperts();
  c.limits = {.decode_tokens = 4, .prefill_tokens = 4};
  // Queue 0: the first two tokens of the prompt. Behind them its run of expert 1 joins the queue of expert 1.
  c.Prompt({0, 0, 1, 1, 1}).Decode(1);
  EXPECT_EQ(Text(PlanReadmeGreedy(c.Get())), "p0:4 d1 | held | experts 3");
}

TEST(ReadmeGreedy, StarvesARareExpert) {
  SnapshotCase c = TwoExperts();
  c.step = 1'000'000;
  c.limits = {.decode_tokens = 4, .prefill_tokens = 0};
  c.Decode(1, 0);  // has waited since step 0
  for (int i = 0; i < 4; ++i) c.Decode(0, c.step);
  EXPECT_EQ(Text(PlanReadmeGreedy(c.Get())), "d1 d2 d3 d4 | held | experts 1");
}

}  // namespace
}  // namespace outrider::sched
