#pragma once
// Invariants of snapshots and step plans, as code. Each function returns all that is broken, in words; for tests, and
// for the engine behind a flag. Time: items times slices.

#include <string>
#include <vector>

#include "sched/step_plan.h"

namespace outrider::sched {

// What a policy may rely on.
std::vector<std::string> SnapshotViolations(const Snapshot& snapshot);

// What holds for the plan of any policy: slices are of ready requests, at most one each, within the item and the lane's
// budget; a decode slice is one token; `experts` are those of the slices; of one expert, no younger decode item
// overtakes an older one of its priority; what is held could have run; and something runs if anything can.
std::vector<std::string> Violations(const Snapshot& snapshot, const StepPlan& plan);

// What the policy `outrider` promises beside that: at most K experts in the decode lane, those of the prompts apart;
// the oldest overdue item of each lane runs; no item is held whose expert is read anyway; the bytes of a step stay
// within ffn_bytes_max as far as the decode lane and one token allow.
std::vector<std::string> OutriderViolations(const Snapshot& snapshot, const StepPlan& plan);

}  // namespace outrider::sched
