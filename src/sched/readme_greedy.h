#pragma once
// The batching algorithm that the Read-ME paper publishes, corrected: it recomputes the longest queue in each round and
// ends when all queues are empty. Kept as a baseline: it has no ageing, so items of rare experts starve.

#include "sched/step_plan.h"

namespace outrider::sched {

// Tokens queue by expert, oldest first. The longest queue, in tokens, is emptied first, then the next longest, until
// the lanes are full. Of a prompt only the next run of tokens of one expert is in a queue: attention needs its order.
StepPlan PlanReadmeGreedy(const Snapshot& snapshot);

}  // namespace outrider::sched
