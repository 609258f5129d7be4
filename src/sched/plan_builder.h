#pragma once
// A step plan under construction: budgets of the two lanes and the experts taken so far.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "sched/step_plan.h"

namespace outrider::sched {

inline ExpertSet With(ExpertSet set, uint8_t expert) { return static_cast<ExpertSet>(set | 1U << expert); }

inline bool Has(ExpertSet set, uint8_t expert) { return (set >> expert & 1U) != 0; }

// Of an item's tokens [begin, end); 0 for a dense model.
inline ExpertSet ExpertsOf(const ReadyItem& item, int64_t begin, int64_t end) {
  ExpertSet set = 0;
  if (item.experts.empty()) return set;
  for (int64_t i = begin; i < end; ++i) set = With(set, item.experts[static_cast<size_t>(i)]);
  return set;
}

class PlanBuilder {
 public:
  explicit PlanBuilder(const Snapshot& snapshot)
      : items_(snapshot.items.data()),
        taken_(snapshot.items.size(), 0),
        decode_room_(snapshot.limits.decode_tokens),
        prefill_room_(snapshot.limits.prefill_tokens) {}

  int64_t Room(Lane lane) const { return lane == Lane::kDecode ? decode_room_ : prefill_room_; }
  int64_t Taken(size_t item) const { return taken_[item]; }
  ExpertSet experts() const { return plan_.experts; }
  bool Empty() const { return plan_.slices.empty(); }

  // Takes up to `tokens` more of the item, as many as its lane has room for.
  void Take(size_t item, int64_t tokens) {
    const ReadyItem& source = items_[item];
    int64_t& room = source.lane == Lane::kDecode ? decode_room_ : prefill_room_;
    tokens = std::min({tokens, room, source.tokens - taken_[item]});
    if (tokens <= 0) return;
    room -= tokens;
    if (taken_[item] == 0) plan_.slices.push_back({source.request, source.lane, 0});
    const int64_t end = taken_[item] + tokens;
    plan_.experts = static_cast<ExpertSet>(plan_.experts | ExpertsOf(source, taken_[item], end));
    taken_[item] = end;
    const auto same = [&](const Slice& slice) { return slice.request == source.request; };
    std::find_if(plan_.slices.rbegin(), plan_.slices.rend(), same)->tokens = taken_[item];
  }

  void Hold(size_t item) { plan_.held.push_back(items_[item].request); }

  StepPlan Finish() && { return std::move(plan_); }

 private:
  const ReadyItem* items_;
  std::vector<int64_t> taken_;  // tokens, by item
  int64_t decode_room_;
  int64_t prefill_room_;
  StepPlan plan_;
};

}  // namespace outrider::sched
