#pragma once
// A snapshot that owns what it points to.

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "sched/step_plan.h"

namespace outrider::sched {

class SnapshotCase {
 public:
  SnapshotCase(int64_t experts, std::vector<int64_t> ffn_bytes) : experts_(experts), ffn_bytes_(std::move(ffn_bytes)) {}

  // Requests are numbered in the order of these calls. Without experts in a dense model.
  SnapshotCase& Decode(uint8_t expert, int64_t ready_since = 0, int64_t priority = 0) {
    return Add(Lane::kDecode, {expert}, 1, ready_since, priority);
  }
  SnapshotCase& Prompt(std::vector<uint8_t> experts, int64_t ready_since = 0, int64_t priority = 0) {
    const auto tokens = static_cast<int64_t>(experts.size());
    return Add(Lane::kPrefill, std::move(experts), tokens, ready_since, priority);
  }

  Snapshot Get() const {
    Snapshot snapshot;
    snapshot.step = step;
    snapshot.items = items_;
    snapshot.limits = limits;
    snapshot.experts = experts_;
    snapshot.ffn_bytes = ffn_bytes_;
    snapshot.fixed_bytes = fixed_bytes;
    snapshot.bytes_per_s = bytes_per_s;
    snapshot.token_s = token_s;
    snapshot.prompt_pass = prompt_pass;
    return snapshot;
  }

  int64_t step = 0;
  StepLimits limits;
  int64_t fixed_bytes = 0;
  double bytes_per_s = 0;
  double token_s = 0;
  PromptPass prompt_pass;

 private:
  SnapshotCase& Add(Lane lane, std::vector<uint8_t> experts, int64_t tokens, int64_t ready_since, int64_t priority) {
    if (experts_ == 0) experts.clear();
    ReadyItem item;
    item.request = RequestId{items_.size()};
    item.lane = lane;
    item.tokens = tokens;
    item.ready_since = ready_since;
    item.priority = priority;
    item.experts = kept_.emplace_back(std::move(experts));
    items_.push_back(item);
    return *this;
  }

  int64_t experts_;
  std::vector<int64_t> ffn_bytes_;
  std::vector<ReadyItem> items_;
  std::deque<std::vector<uint8_t>> kept_;  // what items point to
};

}  // namespace outrider::sched
