#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include <limits>

#include "sched/baselines.h"
#include "sched/outrider_policy.h"
#include "sched/policies.h"
#include "sched/violations.h"
#include "support/below.h"
#include "support/expert_bytes.h"
#include "support/snapshot_case.h"

namespace outrider::sched {
namespace {

std::string Joined(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += text + "\n";
  return all;
}

// Few distinct values, zeros among them, so that limits are met and switched off often.
StepLimits AnyLimits() {
  StepLimits limits;
  limits.decode_tokens = Below(7);
  limits.prefill_tokens = Below(9);
  limits.distinct_experts = Below(4);
  limits.age_max = Below(4);
  limits.prefill_age_max = Below(4);
  limits.hold_gain_min = 1 + 0.5 * Below(2);
  limits.ffn_bytes_max = Below(2) * 1000 * Below(20);
  return limits;
}

SnapshotCase AnySnapshot() {
  const int64_t experts = Below(13);  // both ways to choose experts, and dense models
  SnapshotCase c(experts, OverlappingBytes(experts, 0.25 * (1 + Below(4)), Below(1000), 16));
  c.step = 8;
  c.limits = AnyLimits();
  c.fixed_bytes = 1000 * Below(30);
  c.bytes_per_s = Below(2) * 1e4;
  c.token_s = Below(3) * 0.01;
  const auto any_expert = [&] {
    return static_cast<uint8_t>(experts == 0 ? 0 : Below(static_cast<uint32_t>(experts)));
  };
  for (uint32_t left = Below(20); left > 0; --left) {
    const int64_t ready_since = 1 + Below(8), priority = Below(4) == 0;
    if (Below(3) > 0) {
      c.Decode(any_expert(), ready_since, priority);
      continue;
    }
    std::vector<uint8_t> prompt{any_expert()};
    for (uint32_t tokens = Below(8); tokens > 0; --tokens) {
      prompt.push_back(Below(2) == 0 ? prompt.back() : any_expert());
    }
    c.Prompt(std::move(prompt), ready_since, priority);
  }
  return c;
}

RC_GTEST_PROP(StepPlanProperty, EveryPolicyKeepsTheInvariants, ()) {
  const SnapshotCase c = AnySnapshot();
  for (const NamedPolicy& named : Policies()) {
    RC_LOG() << named.name << "\n";
    const StepPlan plan = named.policy(c.Get());
    RC_ASSERT(Joined(Violations(c.Get(), plan)) == "");
    RC_ASSERT(named.policy(c.Get()) == plan);
  }
}

RC_GTEST_PROP(StepPlanProperty, OutriderKeepsItsPromises, ()) {
  const SnapshotCase c = AnySnapshot();
  RC_ASSERT(Joined(OutriderViolations(c.Get(), PlanOutrider(c.Get()))) == "");
}

// Everything switched off, one after another, leaves the policy that does not look at experts.
RC_GTEST_PROP(StepPlanProperty, OutriderWithoutItsMechanismsIsFcfs, ()) {
  SnapshotCase c = AnySnapshot();
  c.limits.age_max = 0;
  c.limits.prefill_age_max = 0;
  c.limits.ffn_bytes_max = 0;
  RC_ASSERT(PlanOutrider(c.Get()) == PlanChunkedFcfs(c.Get()));
}

RC_GTEST_PROP(StepPlanProperty, OneReadyItemIsNeverHeld, ()) {
  SnapshotCase c = AnySnapshot();
  const Snapshot all = c.Get();
  for (const ReadyItem& item : all.items) {
    Snapshot one = all;
    one.items = {&item, 1};
    RC_ASSERT(PlanOutrider(one).held.empty());
    if (one.limits.ffn_bytes_max == 0) RC_ASSERT(PlanOutrider(one) == PlanChunkedFcfs(one));
  }
}

// The validators see what they are for: each damage to a plan is found.
RC_GTEST_PROP(StepPlanProperty, ValidatorsFindDamage, ()) {
  const SnapshotCase c = AnySnapshot();
  const StepPlan plan = PlanChunkedFcfs(c.Get());
  RC_PRE(!plan.slices.empty());
  StepPlan twice = plan;
  twice.slices.push_back(twice.slices[Below(static_cast<uint32_t>(plan.slices.size()))]);
  RC_ASSERT(!Violations(c.Get(), twice).empty());
  StepPlan longer = plan;
  longer.slices[0].tokens = std::numeric_limits<int32_t>::max();
  RC_ASSERT(!Violations(c.Get(), longer).empty());
  StepPlan experts = plan;
  experts.experts ^= 1;
  RC_ASSERT(!Violations(c.Get(), experts).empty());
}

}  // namespace
}  // namespace outrider::sched
