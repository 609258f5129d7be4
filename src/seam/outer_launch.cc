// OuterLane: from validated events to effects.

#include "seam/gil.h"
#include "seam/outer_lane.h"
#include "seam/settle.h"

namespace outrider::seam {

// Nobody alive needs history that only a replay could build: every living tensor that requires grad was consumed by a
// backward that has been validated.
bool OuterLane::CommitAllowed() const {
  const OuterPlan& plan = *step_->plan;
  for (size_t i = 0; i < plan.values.size(); ++i) {
    const OuterValue& value = plan.values[i];
    if (!value.requires_grad || step_->live[i] == nullptr) continue;
    if (value.consumed_by < 0 || value.consumed_by >= step_->cursor) return false;
  }
  return true;
}

void OuterLane::CountOps(int first_op, int end_op) {
  for (int i = first_op; i < end_op; ++i) {
    if (!step_->plan->ops[i].host_draw && !step_->plan->ops[i].info->metadata_only) ++stats_.covered_ops;
  }
}

void OuterLane::Launch(bool final) {
  OuterStep& step = *step_;
  const OuterPlan& plan = *step.plan;
  SetUncommittedWork(false);
  if (step.launched_events == step.cursor) return;
  const bool commit = final || CommitAllowed();
  auto part = std::make_shared<OuterPart>();
  part->plan = &plan;
  part->table = step.table;
  part->first_op = plan.events[step.launched_events].first_op;
  part->end_op = plan.events[step.cursor - 1].end_op;
  part->inputs = std::move(step.inputs);
  part->draws = std::move(step.draws);
  part->late = step.late;
  part->drop_values = commit;
  step.inputs.clear();
  step.draws.clear();
  if (!commit) {
    for (int i = part->first_op; i < part->end_op; ++i) {
      for (int slot : plan.ops[i].writes) {
        if (plan.slots[slot].persistent >= 0 && step.preimage_taken.insert(slot).second) part->preimages.push_back(slot);
      }
    }
  }
  Work& work = queue_.NextSlot();
  work.Clear();
  const uint64_t sequence = queue_.NextSequence();
  for (size_t slot = 0; slot < step.tokens.size(); ++slot) {
    const c10::Storage& token = step.tokens[slot];
    if (!token || token.use_count() == 1) continue;
    StorageRecord* record = RecordOf(token.unsafeGetStorageImpl());
    record->last_use.store(sequence, std::memory_order_release);
    record->uncommitted_step.store(0, std::memory_order_release);
    if (step.launched_slots.count(static_cast<int>(slot)) == 0) {
      part->keep.emplace_back(static_cast<int>(slot), RecordPtr::reclaim_copy(record));
      step.launched_slots.insert(static_cast<int>(slot));
    }
  }
  for (const auto& record : plan.persistent_records) record->last_use.store(sequence, std::memory_order_release);
  for (const auto& [slot, operand] : part->inputs) {
    if (operand.record != nullptr) operand.record->last_use.store(sequence, std::memory_order_release);
  }
  CountOps(part->first_op, part->end_op);
  work.part = std::move(part);
  queue_.Submit();
  step.launched_events = step.cursor;
  if (commit) Commit();
}

void OuterLane::Commit() {
  OuterStep& step = *step_;
  step.may_switch = false;
  step.committed_events = step.cursor;
  step.log.clear();
  step.preimage_taken.clear();
}

void OuterLane::SettleUncommitted(StorageRecord& record) {
  std::lock_guard<std::recursive_mutex> lock(launch_mutex_);
  if (mode_ != Mode::kCover || step_ == nullptr) return;
  Launch(/*final=*/false);
  // A raw pointer to something later device ops touch: they have to run where the program can see them.
  if (!record.synchronous.load(std::memory_order_relaxed)) return;
  const OuterPlan& plan = *step_->plan;
  int slot = record.uncommitted_slot;
  if (auto it = plan.slot_of_persistent.find(&record); it != plan.slot_of_persistent.end()) slot = it->second;
  const int launched = step_->launched_events == 0 ? 0 : plan.events[step_->launched_events - 1].end_op;
  if (slot >= 0 && static_cast<size_t>(slot) < plan.last_use.size() && plan.last_use[slot] >= launched) diverge_requested_ = true;
}

void OuterLane::Diverge(DivergenceReason reason, const std::string& expected, const std::string& got, const std::string& field) {
  stats_.Diverge({reason, step_->cursor, expected, got, field, UserFrame()});
  diverged_this_step_ = true;
  if (CommitAllowed()) {
    Launch(/*final=*/false);
  } else {
    Replay();
  }
  LeaveCover();
}

// The rest of the step runs in the inner lane.
void OuterLane::LeaveCover() {
  SetUncommittedWork(false);
  mode_ = Mode::kDiverged;
  step_->over = true;
  program_->clean = 0;
  program_->record_until = std::max<uint64_t>(program_->record_until, step_number_ + 3);
  inner_.Resume();
}

}  // namespace outrider::seam
