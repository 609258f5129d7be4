#include "sched/baselines.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "sched/item_order.h"
#include "sched/plan_builder.h"

namespace outrider::sched {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// Takes items in the given order until a lane is full or `tokens` are spent; returns how many were spent.
int64_t TakeInOrder(PlanBuilder& plan, const Snapshot& snapshot, const std::vector<size_t>& order, int64_t tokens) {
  int64_t spent = 0;
  for (const size_t item : order) {
    plan.Take(item, std::min(snapshot.items[item].tokens, tokens - spent));
    spent += plan.Taken(item);
  }
  return spent;
}

}  // namespace

StepPlan PlanChunkedFcfs(const Snapshot& snapshot) {
  PlanBuilder plan(snapshot);
  TakeInOrder(plan, snapshot, DecodeOrder(snapshot), kNoLimit);
  TakeInOrder(plan, snapshot, PrefillOrder(snapshot), kNoLimit);
  return std::move(plan).Finish();
}

StepPlan PlanDecodeFirst(const Snapshot& snapshot) {
  PlanBuilder plan(snapshot);
  const int64_t budget = std::max(snapshot.limits.decode_tokens, snapshot.limits.prefill_tokens);
  const int64_t spent = TakeInOrder(plan, snapshot, DecodeOrder(snapshot), kNoLimit);
  TakeInOrder(plan, snapshot, PrefillOrder(snapshot), budget - spent);
  return std::move(plan).Finish();
}

StepPlan PlanPrefillFirst(const Snapshot& snapshot) {
  PlanBuilder plan(snapshot);
  TakeInOrder(plan, snapshot, PrefillOrder(snapshot), kNoLimit);
  if (plan.Empty()) TakeInOrder(plan, snapshot, DecodeOrder(snapshot), kNoLimit);
  return std::move(plan).Finish();
}

}  // namespace outrider::sched
