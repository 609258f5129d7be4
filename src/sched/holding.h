#pragma once
// How long the policy `outrider` may hold an item, and what follows from it.

#include <cstdint>

#include "sched/step_plan.h"

namespace outrider::sched {

struct HoldingCase {
  int64_t experts = 0;           // N
  int64_t distinct_experts = 0;  // K; 0: no limit
  int64_t running = 0;           // R, decode items ready at once at most
  int64_t decode_tokens = 0;     // B
};

// Steps that pass over a ready decode item at most, for 1 <= W, B. The proof needs that items become ready only with
// the number of the current step, and that all that is planned runs.
int64_t DelayBound(int64_t age_max, const HoldingCase& of);

// W for a goal of time per token: the largest age that keeps the bound, and the item's own step, within the goal when
// steps take their 95th percentile. 0: the goal leaves no room, holding is off.
int64_t HoldingAge(double tpot_goal_s, double step_p95_s, const HoldingCase& of);

// The age at which a prompt is no longer held for decode items: prompts that are overdue never are.
int64_t PromptHoldAge(const StepLimits& limits);

// Steps that the policy `outrider` may hold a prompt of so many tokens, chunk by chunk, while `before` other requests
// are admitted. It is 0 where these cannot be more than a step's decode items. Chunks that `ffn_bytes_max` cuts short
// are not counted.
int64_t PromptHoldSteps(const StepLimits& limits, int64_t prompt_tokens, int64_t before);

}  // namespace outrider::sched
