#pragma once
// The experts of a decode step: those that give the most tokens per second.

#include <cstdint>
#include <span>

#include "sched/step_plan.h"

namespace outrider::sched {

constexpr int64_t kEnumeratedExpertsMax = 10;  // above, experts are added greedily

// The set E' of at most K experts, `forced` among them, with the largest n(E') / T(E'): n the ready items of E' up to
// B, T the time that the snapshot's rates predict. Ties go to fewer bytes, then to the lower bit pattern. Experts
// without a ready item are never added. `ready` counts decode items by expert; |forced| <= K.
ExpertSet ChooseExperts(const Snapshot& snapshot, ExpertSet forced, std::span<const int64_t> ready);

// K of the snapshot: N where it has no limit.
int64_t DistinctMax(const Snapshot& snapshot);

}  // namespace outrider::sched
