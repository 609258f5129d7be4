#include "sched/holding.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace outrider::sched {
namespace {

constexpr double kAgeMax = 1e6;  // steps; a goal beyond that is none

}  // namespace

int64_t DelayBound(int64_t age_max, const HoldingCase& of) {
  OUTRIDER_CHECK(of.decode_tokens > 0, "a decode lane of ", of.decode_tokens, " tokens");
  const int64_t distinct = of.distinct_experts > 0 ? of.distinct_experts : std::max<int64_t>(1, of.experts);
  const int64_t full_sets = std::max<int64_t>(0, of.experts - 1) / distinct;
  const int64_t full_batches = std::max<int64_t>(0, of.running - 1) / of.decode_tokens;
  return age_max + full_sets + full_batches;
}

int64_t HoldingAge(double tpot_goal_s, double step_p95_s, const HoldingCase& of) {
  if (!(tpot_goal_s > 0) || !(step_p95_s > 0)) return 0;
  const auto steps = static_cast<int64_t>(std::min(kAgeMax, std::floor(tpot_goal_s / step_p95_s)));
  return std::max<int64_t>(0, steps - DelayBound(0, of) - 1);
}

int64_t PromptHoldAge(const StepLimits& limits) {
  return limits.prefill_age_max > 0 ? std::min(limits.prompt_hold_max, limits.prefill_age_max) : limits.prompt_hold_max;
}

int64_t PromptHoldSteps(const StepLimits& limits, int64_t prompt_tokens, int64_t before) {
  OUTRIDER_CHECK(limits.prefill_tokens > 0, "a prefill lane of ", limits.prefill_tokens, " tokens");
  if (before <= limits.decode_tokens) return 0;
  const int64_t chunks = (prompt_tokens + limits.prefill_tokens - 1) / limits.prefill_tokens;
  return chunks * PromptHoldAge(limits);
}

}  // namespace outrider::sched
