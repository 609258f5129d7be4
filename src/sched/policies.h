#pragma once
// All policies by name. A policy is a pure function: the same snapshot gives the same plan, and nothing else happens.

#include <span>
#include <string_view>

#include "sched/step_plan.h"

namespace outrider::sched {

using Policy = StepPlan (*)(const Snapshot&);

struct NamedPolicy {
  std::string_view name;
  Policy policy;
};

std::span<const NamedPolicy> Policies();

// Null if there is no policy of that name.
Policy FindPolicy(std::string_view name);

}  // namespace outrider::sched
