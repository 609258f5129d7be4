#include "sched/policies.h"

#include <array>

#include "sched/baselines.h"
#include "sched/outrider_policy.h"
#include "sched/readme_greedy.h"

namespace outrider::sched {
namespace {

constexpr std::array kPolicies{NamedPolicy{"outrider", PlanOutrider}, NamedPolicy{"chunked_fcfs", PlanChunkedFcfs},
                               NamedPolicy{"decode_first", PlanDecodeFirst},
                               NamedPolicy{"prefill_first", PlanPrefillFirst},
                               NamedPolicy{"readme_greedy", PlanReadmeGreedy}};

}  // namespace

std::span<const NamedPolicy> Policies() { return kPolicies; }

Policy FindPolicy(std::string_view name) {
  for (const NamedPolicy& named : kPolicies) {
    if (named.name == name) return named.policy;
  }
  return nullptr;
}

}  // namespace outrider::sched
