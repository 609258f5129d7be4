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

}  // namespace outrider::sched
