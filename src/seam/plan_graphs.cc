#include "seam/plan_graphs.h"

#include "seam/outer_part.h"

namespace outrider::seam {
namespace {

constexpr size_t kSegmentsMax = 12; // ranges of one plan that may be captured

}  // namespace

// A record with one owner is ours alone: the program let go of the value.
bool PlanGraphs::GiveBytes(Lent& lent) {
  if (lent.record.use_count() > 1) OwnBytes(*lent.record);
  return true;
}

PlanGraphs::~PlanGraphs() { Clear(); }

void PlanGraphs::Clear() {
  std::erase_if(lent_, GiveBytes);
  segments_.clear();
  memory_.reset();
}

Segment* PlanGraphs::Find(const OuterPart& part) {
  if (part.first_op == part.end_op) return nullptr;
  const auto key = std::make_tuple(part.first_op, part.end_op, part.commit);
  auto it = segments_.find(key);
  if (it == segments_.end()) {
    if (segments_.size() == kSegmentsMax) return nullptr;
    it = segments_.emplace(key, std::make_unique<Segment>(part)).first;
  }
  return it->second.get();
}

void PlanGraphs::Prepare(OuterPart& part) {
  if (step_ != part.table->step) {
    step_ = part.table->step;
    in_buffer_.assign(part.plan->slots.size(), 0);
  }
  Segment* segment = Find(part);
  if (segment == nullptr || !segment->MayLaunch()) return;
  std::erase_if(lent_, [this](Lent& lent) { return lent.step != step_ && GiveBytes(lent); });
}

bool PlanGraphs::Run(OuterPart& part) {
  Segment* segment = Find(part);
  if (segment == nullptr) return false;
  if (memory_ == nullptr) memory_ = NewGraphMemory(device_);
  if (memory_ == nullptr) return false;
  const bool ran = segment->Run(part, *memory_, in_buffer_);
  if (segment->JustCaptured()) {
    for (auto& [key, other] : segments_) {
      if (std::get<0>(key) >= part.end_op) other->CaptureAgain();
    }
  }
  return ran;
}

bool PlanGraphs::Lend(int slot, const RecordPtr& record, const OuterTable& table) {
  if (slot >= static_cast<int>(in_buffer_.size()) || in_buffer_[slot] == 0 || table.step != step_ || !table.slots[slot]) return false;
  LendBytes(*record, table.slots[slot]);
  lent_.push_back({step_, record});
  return true;
}

}  // namespace outrider::seam
