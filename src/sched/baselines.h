#pragma once
// Policies that do not look at experts: what other engines do. Each takes decode items oldest first and prompts in
// order of arrival, the higher priority first; they differ in how the two lanes share a step.

#include "sched/step_plan.h"

namespace outrider::sched {

// Both lanes fill their own budgets.
StepPlan PlanChunkedFcfs(const Snapshot& snapshot);

// Both lanes share the larger budget: prompts get what decode items leave of it.
StepPlan PlanDecodeFirst(const Snapshot& snapshot);

// No decode item runs while a prompt waits.
StepPlan PlanPrefillFirst(const Snapshot& snapshot);

}  // namespace outrider::sched
