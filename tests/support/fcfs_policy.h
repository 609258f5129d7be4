#pragma once
// The plainest policy: in the order of arrival, whatever fits.

#include <algorithm>

#include "sched/step_plan.h"

namespace outrider::serve::test {

inline sched::StepPlan Fcfs(const sched::Snapshot& snapshot) {
  sched::StepPlan plan;
  int64_t decode = snapshot.limits.decode_tokens, prefill = snapshot.limits.prefill_tokens;
  for (const sched::ReadyItem& item : snapshot.items) {
    int64_t& room = item.lane == sched::Lane::kDecode ? decode : prefill;
    const int64_t tokens = std::min(room, item.tokens);
    if (tokens == 0) continue;
    room -= tokens;
    plan.slices.push_back({item.request, item.lane, tokens});
  }
  return plan;
}

}  // namespace outrider::serve::test
