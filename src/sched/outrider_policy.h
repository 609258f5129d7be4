#pragma once
// Batching by experts with bounded delay. It chooses by bytes of weights, since experts share most of their channels.

#include "sched/step_plan.h"

namespace outrider::sched {

// Decode lane, at most B items of at most K experts:
//   A  overdue items, oldest first;
//   B  more experts, where they raise tokens per second (expert_choice.h);
//   C  items of these experts, oldest first. The others are held, though there may be room.
// An item is passed over in at most DelayBound steps (holding.h).
// Prefill lane, at most C tokens: overdue prompts, oldest first, then those that add the fewest bytes to what the
// decode lane reads. It is empty while more decode items are ready than B, until a prompt has waited PromptHoldAge
// steps or four times what the lane would add to the step, or has priority. Where prompts have passes of their own, a
// lane that is not full is empty, too, while waiting for more prompts pays: until they have waited together for as long
// as the pass itself costs all that write, or one of them PromptHoldAge steps. A chunk ends where its next expert would
// exceed ffn_bytes_max. Each step serves the oldest overdue prompt, so that of R_p prompts each gets tokens after at
// most W_p + R_p - 1 steps without that have a lane for prompts. Last, held decode items whose experts the prompts read
// anyway take the room that is left.
StepPlan PlanOutrider(const Snapshot& snapshot);

}  // namespace outrider::sched
