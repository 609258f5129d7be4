#include <algorithm>
#include <bit>
#include <map>

#include "sched/expert_choice.h"
#include "sched/plan_builder.h"
#include "sched/step_cost.h"
#include "sched/violations.h"

namespace outrider::sched {
namespace {

class OutriderCheck {
 public:
  OutriderCheck(const Snapshot& snapshot, const StepPlan& plan) : snapshot_(snapshot), limits_(snapshot.limits) {
    std::map<RequestId, const ReadyItem*> items;
    for (const ReadyItem& item : snapshot.items) items.emplace(item.request, &item);
    for (const Slice& slice : plan.slices) {
      const auto known = items.find(slice.request);
      if (known == items.end()) continue;
      tokens_.emplace(slice.request, slice.tokens);
      ExpertSet& set = slice.lane == Lane::kDecode ? decode_ : prefill_;
      set = static_cast<ExpertSet>(set | ExpertsOf(*known->second, 0, slice.tokens));
      if (slice.lane == Lane::kDecode) ++decode_tokens_;
      if (slice.lane == Lane::kPrefill && first_prompt_ == nullptr) first_prompt_ = known->second;
    }
  }

  std::vector<std::string> Run() && {
    CheckOldest(Lane::kDecode, limits_.decode_tokens > 0 ? limits_.age_max : 0);
    CheckOldest(Lane::kPrefill, limits_.prefill_tokens > 0 ? limits_.prefill_age_max : 0);
    if (snapshot_.experts == 0) return std::move(found_);
    if (limits_.age_max > 0) {
      const auto own = static_cast<ExpertSet>(decode_ & ~prefill_);
      Expect(std::popcount(own) <= DistinctMax(snapshot_), "the decode lane has too many experts of its own");
    }
    CheckHolding();
    CheckBytes();
    return std::move(found_);
  }

 private:
  void Expect(bool holds, const char* what) {
    if (!holds) found_.push_back(what);
  }

  void CheckOldest(Lane lane, int64_t age_max) {
    if (age_max <= 0) return;
    const ReadyItem* oldest = nullptr;
    for (const ReadyItem& item : snapshot_.items) {
      const bool overdue = item.lane == lane && snapshot_.step - item.ready_since >= age_max;
      if (overdue && (oldest == nullptr || item.ready_since < oldest->ready_since)) oldest = &item;
    }
    Expect(oldest == nullptr || tokens_.contains(oldest->request), "the oldest overdue item of a lane does not run");
  }

  void CheckHolding() {
    if (decode_tokens_ >= limits_.decode_tokens) return;
    for (const ReadyItem& item : snapshot_.items) {
      if (item.lane != Lane::kDecode || tokens_.contains(item.request)) continue;
      Expect(limits_.age_max > 0, "an item waits, though holding is off and there is room");
      Expect(!Has(static_cast<ExpertSet>(decode_ | prefill_), item.experts[0]),
             "an item waits whose expert is read anyway");
    }
  }

  void CheckBytes() {
    if (limits_.ffn_bytes_max <= 0 || first_prompt_ == nullptr) return;
    const auto all = static_cast<ExpertSet>(decode_ | prefill_);
    const ExpertSet least = With(decode_, first_prompt_->experts[0]);
    Expect(FfnBytes(snapshot_, all) <= std::max(limits_.ffn_bytes_max, FfnBytes(snapshot_, least)),
           "chunks of prompts exceed the limit on bytes");
  }

  const Snapshot& snapshot_;
  const StepLimits& limits_;
  std::map<RequestId, int64_t> tokens_;  // that run
  ExpertSet decode_ = 0;
  ExpertSet prefill_ = 0;
  int64_t decode_tokens_ = 0;
  const ReadyItem* first_prompt_ = nullptr;
  std::vector<std::string> found_;
};

}  // namespace

std::vector<std::string> OutriderViolations(const Snapshot& snapshot, const StepPlan& plan) {
  return OutriderCheck(snapshot, plan).Run();
}

}  // namespace outrider::sched
