#include "sched/violations.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sched/outrider_policy.h"
#include "support/snapshot_case.h"

namespace outrider::sched {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

SnapshotCase Case() {
  SnapshotCase c(2, {0, 100, 100, 200});
  c.step = 9;
  c.fixed_bytes = 1;
  c.limits = {.decode_tokens = 3, .prefill_tokens = 2, .distinct_experts = 1, .age_max = 3, .prefill_age_max = 3};
  c.Decode(0, 9).Decode(0, 8).Decode(1, 9).Prompt({1, 0, 0}, 9);
  return c;
}

StepPlan Good() { return {{{RequestId{1}, Lane::kDecode, 1}, {RequestId{0}, Lane::kDecode, 1}}, {RequestId{2}}, 1}; }

TEST(Violations, NoneInAGoodPlan) {
  EXPECT_THAT(Violations(Case().Get(), Good()), IsEmpty());
  EXPECT_THAT(OutriderViolations(Case().Get(), Good()), IsEmpty());
}

void ExpectViolation(const StepPlan& plan, const char* text) {
  EXPECT_THAT(Violations(Case().Get(), plan), Contains(HasSubstr(text)));
}

TEST(Violations, OfSlices) {
  StepPlan plan = Good();
  plan.slices.push_back({RequestId{77}, Lane::kDecode, 1});
  ExpectViolation(plan, "request 77 runs, but is not ready");
  plan = Good();
  plan.slices.push_back(plan.slices[0]);
  ExpectViolation(plan, "request 1 runs twice");
  plan = Good();
  plan.slices[0].tokens = 2;
  ExpectViolation(plan, "request 1 runs 2 tokens of 1");
  plan = Good();
  plan.slices[0].lane = Lane::kPrefill;
  ExpectViolation(plan, "request 1 runs in the wrong lane");
  plan = Good();
  plan.slices.push_back({RequestId{3}, Lane::kPrefill, 3});
  ExpectViolation(plan, "prefill lane: 3 tokens, the budget is 2");
  plan = Good();
  plan.experts = 3;
  ExpectViolation(plan, "the plan names experts 3, its slices have 1");
  plan = Good();
  plan.slices.erase(plan.slices.begin());
  ExpectViolation(plan, "request 0 overtakes request 1 of its expert");
  ExpectViolation({}, "nothing runs, though items are ready");
}

TEST(Violations, OfHeldItems) {
  StepPlan plan = Good();
  plan.held = {RequestId{2}, RequestId{2}};
  ExpectViolation(plan, "a request is held twice");
  plan.held = {RequestId{5}};
  ExpectViolation(plan, "request 5 is held, but not ready");
  plan.held = {RequestId{0}};
  ExpectViolation(plan, "request 0 is held and runs");
  SnapshotCase full = Case();
  full.limits.decode_tokens = 2;
  EXPECT_THAT(Violations(full.Get(), Good()), Contains(HasSubstr("request 2 is held, though its lane is full")));
}

TEST(Violations, OfThePolicyOutrider) {
  StepPlan plan = Good();
  plan.slices.push_back({RequestId{2}, Lane::kDecode, 1});
  plan.held = {};
  plan.experts = 3;
  EXPECT_THAT(OutriderViolations(Case().Get(), plan), Contains(HasSubstr("too many experts")));
  plan.slices.push_back({RequestId{3}, Lane::kPrefill, 2});  // reads expert 1 anyway
  EXPECT_THAT(OutriderViolations(Case().Get(), plan), IsEmpty());
  SnapshotCase tight = Case();
  tight.limits.ffn_bytes_max = 150;
  EXPECT_THAT(OutriderViolations(tight.Get(), plan), IsEmpty());  // the decode lane alone exceeds it
  plan.slices.erase(plan.slices.begin() + 2);
  plan.held = {RequestId{2}};
  EXPECT_THAT(OutriderViolations(Case().Get(), plan), Contains(HasSubstr("read anyway")));
  plan.slices.back().tokens = 2;
  plan.slices.erase(plan.slices.begin());
  SnapshotCase aged = Case();
  aged.step = 11;
  EXPECT_THAT(OutriderViolations(aged.Get(), plan), Contains(HasSubstr("oldest overdue item")));
}

TEST(Violations, OfSnapshots) {
  SnapshotCase c(2, {0, 1});
  c.limits.age_max = -1;
  c.limits.hold_gain_min = 0;
  c.Decode(5, 3, 2);
  const std::vector<std::string> found = SnapshotViolations(c.Get());
  EXPECT_THAT(found, Contains(HasSubstr("FFN bytes of 2 sets of 2 experts")));
  EXPECT_THAT(found, Contains(HasSubstr("a limit of -1")));
  EXPECT_THAT(found, Contains(HasSubstr("a least gain of holding of 0")));
  EXPECT_THAT(found, Contains(HasSubstr("request 0 has expert 5")));
  EXPECT_THAT(found, Contains(HasSubstr("request 0 is ready in a later step")));
  EXPECT_THAT(found, Contains(HasSubstr("request 0 has priority 2")));
  SnapshotCase many(0, {});
  Snapshot snapshot = many.Get();
  snapshot.experts = 17;
  EXPECT_THAT(SnapshotViolations(snapshot), Contains(HasSubstr("17 experts")));
}

}  // namespace
}  // namespace outrider::sched
