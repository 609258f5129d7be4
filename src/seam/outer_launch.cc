// OuterLane: from validated events to effects.

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "seam/gil.h"
#include "seam/lazy_impl.h"
#include "seam/outer_lane.h"
#include "seam/plan_graphs.h"
#include "seam/settle.h"

namespace outrider::seam {
namespace {

constexpr uint64_t kRecordAfterDivergence = 3;       // steps
constexpr int kCleanForEarly = 8;                    // covered steps in a row
constexpr size_t kEarlyCopyMaxBytes = 64 * 1024;     // of state that is written before BACKWARD: running statistics
constexpr size_t kEarlyCopyMaxBytesOnDevice = 1024 * 1024;
constexpr int kPartChangesMax = 8;                   // between small and large parts

}  // namespace

// Nobody needs history that only a replay could build: every tensor with history that code can reach was consumed by a
// backward that has been validated.
bool OuterLane::CommitAllowed() const {
  const OuterPlan& plan = *step_->plan;
  size_t not_consumed = 0;
  for (size_t i = 0; i < plan.values.size(); ++i) {
    if (NeedsHistory(plan.values[i]) && step_->live[i] != nullptr && !IsConsumed(plan.values[i])) ++not_consumed;
  }
  return not_consumed == 0 || LogAloneHolds(not_consumed);
}

bool OuterLane::IsConsumed(const OuterValue& value) const { return value.consumed_by >= 0 && value.consumed_by < step_->cursor; }

namespace {

// How many references the log holds to each value of the step.
std::vector<size_t> ReferencesOf(const OuterStep& step) {
  std::vector<size_t> references(step.live.size(), 0);
  const auto count = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || KindOf(*tensor.unsafeGetTensorImpl()) != ImplKind::kOuterPlaceholder) return;
    const auto& placeholder = static_cast<const OuterPlaceholder&>(*tensor.unsafeGetTensorImpl());
    if (placeholder.Step() == &step) ++references[placeholder.Value()];
  };
  for (const LogEntry& entry : step.log) {
    for (const c10::IValue& value : entry.args) {
      if (value.isTensor()) count(value.toTensor());
      if (!value.isList() || value.use_count() > 1) continue;  // somebody else's list as well
      for (const c10::IValue& element : value.toListRef()) {
        if (element.isTensor()) count(element.toTensor());
      }
    }
  }
  return references;
}

}  // namespace

// To the dummy node: of the lane itself, and of each placeholder with history, or whose base inside an operator has it. One
// more is in a node of the program's own, or in its hands.
size_t OuterLane::KnownEdges() const {
  const auto& values = step_->plan->values;
  size_t edges = 1 + edges_in_hand_;
  for (size_t i = 0; i < values.size(); ++i) {
    if (step_->live[i] == nullptr) continue;
    if (NeedsHistory(values[i])) ++edges;
    if (values[i].view.OfHidden() && values[i].view.hidden_requires_grad) ++edges;
  }
  return edges;
}

// The `not_consumed` values are alive because the log holds them as arguments, and for no other reason; in eager they would
// be gone, and with them what hangs on them. See docs/design/0006 for why a commit is right then.
bool OuterLane::LogAloneHolds(size_t not_consumed) const {
  if (std::this_thread::get_id() != thread_) return false;  // the program may be taking and dropping tensors
  if (static_cast<size_t>(dummy_.use_count()) != KnownEdges()) return false;
  std::vector<size_t> references = ReferencesOf(*step_);
  for (size_t value = references.size(); value-- > 0;) {  // a view is younger than what it is a view of
    if (references[value] == 0) continue;
    const OuterPlaceholder* tensor = step_->live[value];
    if (tensor == nullptr || !HeldOnlyBy(*tensor, references[value])) continue;
    const OuterValue& facts = step_->plan->values[value];
    if (NeedsHistory(facts) && !IsConsumed(facts)) --not_consumed;
    const c10::TensorImpl* base = BaseOf(*tensor);
    if (base == tensor || KindOf(*base) != ImplKind::kOuterPlaceholder) continue;
    const auto* of = static_cast<const OuterPlaceholder*>(base);
    if (of->Step() == step_.get() && static_cast<size_t>(of->Value()) < value) ++references[of->Value()];
  }
  return not_consumed == 0;
}

// Tells every value and storage the part touches which job to wait for; values that are alive get their bytes from it.
void OuterLane::StampUses(OuterPart& part, const RangeFacts& facts, uint64_t sequence) {
  OuterStep& step = *step_;
  for (int slot : facts.slots) {
    const c10::Storage& token = step.tokens[slot];
    if (!token) continue;
    StorageRecord* record = RecordOf(token.unsafeGetStorageImpl());
    if (step.launched_slots[slot] != 0) part.holds.push_back(RecordPtr::reclaim_copy(record));
    if (token.use_count() == 1) continue;
    record->last_use.store(sequence, std::memory_order_release);
    if (std::exchange(step.launched_slots[slot], 1) == 0) part.keep.emplace_back(slot, RecordPtr::reclaim_copy(record));
  }
  for (StorageRecord* record : facts.persistent) record->last_use.store(sequence, std::memory_order_release);
  for (const auto& [slot, operand] : part.inputs) {
    if (operand.record == nullptr) continue;
    operand.record->last_use.store(sequence, std::memory_order_release);
    step.fed.emplace_back(slot, operand.record);
  }
  for (const auto& [slot, record] : step.fed) {
    if (step.plan->last_use[slot] >= part.first_op) record->last_use.store(sequence, std::memory_order_release);
  }
}

// A program that waits for each step is served best by a device that starts early, any other one by few large graphs.
void OuterLane::ChooseParts() {
  Program& program = *program_;
  program.habit.Note(std::exchange(waited_, false));
  last_before_step_ = queue_.NextSequence() - 1;
  const bool wanted = program.habit.WaitsEachStep() && (program.small_parts || program.clean >= kCleanForEarly);
  if (wanted == program.small_parts || program.part_changes == kPartChangesMax || !queue_.Idle()) return;
  program.small_parts = wanted;
  ++program.part_changes;
  for (const auto& plan : program.plans) {
    if (plan->graphs != nullptr) plan->graphs->Clear();
  }
}

// An idle graph runner gets what is validated, at places that are the same in every step. Before a BACKWARD, which will
// commit it, only where little has to be copied for the case of a divergence, and where divergences are rare; behind the
// last one, where it can be committed.
OuterLane::EarlyLaunch OuterLane::EarlyLaunchDue() const {
  const OuterPlan& plan = *step_->plan;
  const bool graphs = plan.graphs != nullptr;
  if (options_.early == OuterOptions::Early::kNever) return EarlyLaunch::kNone;
  if ((graphs ? plan.graph_cuts : plan.early_cuts)[step_->cursor - 1] == 0) return EarlyLaunch::kNone;
  if (options_.early == OuterOptions::Early::kWhenIdle) {
    const bool wanted = graphs ? program_->small_parts : program_->clean >= kCleanForEarly && queue_.Idle();
    if (!wanted) return EarlyLaunch::kNone;
  }
  if (step_->cursor > plan.last_backward + 1) return CommitAllowed() ? EarlyLaunch::kCommitted : EarlyLaunch::kNone;
  const int first_op = plan.events[step_->launched_events].first_op;
  size_t copied = 0;
  for (int slot : plan.Facts(first_op, plan.events[step_->cursor - 1].end_op).written_inputs) {
    if (step_->preimage_taken[slot] == 0) copied += plan.slots[slot].nbytes;
  }
  return copied <= (graphs ? kEarlyCopyMaxBytesOnDevice : kEarlyCopyMaxBytes) ? EarlyLaunch::kUndoable : EarlyLaunch::kNone;
}

void OuterLane::Launch(bool final, bool undoable) {
  OuterStep& step = *step_;
  const OuterPlan& plan = *step.plan;
  if (step.launched_events == step.cursor) return;
  const bool commit = final || (!undoable && CommitAllowed());
  auto part = std::make_shared<OuterPart>();
  part->plan = &plan;
  part->table = step.table;
  part->first_op = plan.events[step.launched_events].first_op;
  part->end_op = plan.events[step.cursor - 1].end_op;
  part->undropped_op = plan.events[step.dropped_events].first_op;
  part->stream = plan.events.front().env.stream;
  part->inputs = std::move(step.inputs);
  part->draws = std::move(step.draws);
  part->late = step.late;
  part->commit = commit;
  part->final = final;
  step.inputs.clear();
  step.draws.clear();
  const RangeFacts& facts = plan.Facts(part->first_op, part->end_op);
  if (!commit) {
    for (int slot : facts.written_inputs) {
      if (std::exchange(step.preimage_taken[slot], 1) == 0) part->preimages.push_back(slot);
    }
  }
  Work& work = queue_.NextSlot();
  work.Clear();
  StampUses(*part, facts, queue_.NextSequence());
  stats_.covered_ops += facts.counted_ops;
  work.part = std::move(part);
  queue_.Submit();
  step.launched_events = step.cursor;
  if (!commit) return;
  step.dropped_events = step.cursor;
  Commit();
}

// Where a commit is allowed: nothing validated is left to replay. What has been launched without a commit cannot be launched
// again, so what the graph runner keeps to undo it goes here; values are dropped with the next part.
void OuterLane::CommitAll() {
  if (HasUnlaunched()) return Launch(/*final=*/false);
  if (step_->log.empty()) return;
  queue_.WaitAll();
  step_->table->preimages.clear();
  step_->table->generator_offsets.clear();
  Commit();
}

void OuterLane::Commit() {
  OuterStep& step = *step_;
  step.committed_events = step.cursor;
  step.log.clear();
  ++log_id_;
  // Nothing can come back to these: no tensor of the program is left, and no device op to come uses the storage.
  const int end_op = step.cursor == 0 ? 0 : step.plan->events[step.cursor - 1].end_op;
  for (size_t slot = 0; slot < step.tokens.size(); ++slot) {
    if (step.tokens[slot].use_count() == 1 && step.plan->last_use[slot] < end_op) step.tokens[slot] = c10::Storage();
  }
  std::fill(step.preimage_taken.begin(), step.preimage_taken.end(), 0);
}

void OuterLane::LaunchPending() {
  const auto lock = LockLaunch();
  if (mode_ == Mode::kCover && step_ != nullptr) Launch(/*final=*/false);
}

void OuterLane::BuildsOwnNodes(const std::string& how) {
  if (mode_ == Mode::kRecord) recorder_->Refuse("INNER_PYNODE: " + how);
  if (mode_ != Mode::kCover) return;
  const auto lock = LockLaunch();
  Diverge(DivergenceReason::kBackward, "operators only", how, "history");
}

void OuterLane::RevealHistory(const at::Tensor& tensor, const std::string& how) {
  if (mode_ == Mode::kRecord) {
    if (recorder_->IsValue(tensor) && tensor.requires_grad()) recorder_->Refuse("INNER_HOOK: the program uses " + how);
    return;
  }
  if (mode_ != Mode::kCover || KindOf(*tensor.unsafeGetTensorImpl()) != ImplKind::kOuterPlaceholder || !tensor.requires_grad()) return;
  if (static_cast<OuterPlaceholder*>(tensor.unsafeGetTensorImpl())->Step() == step_.get()) RevealGraph(how);
}

void OuterLane::RevealView(const at::Tensor& tensor, const std::string& how) {
  if (mode_ == Mode::kRecord) {
    if (!recorder_->InEvent() && recorder_->IsViewOfHidden(tensor)) recorder_->Refuse("INNER_HISTORY: the program uses " + how);
    return;
  }
  if (mode_ != Mode::kCover || !IsValue(tensor)) return;
  const int value = static_cast<OuterPlaceholder*>(tensor.unsafeGetTensorImpl())->Value();
  const auto lock = LockLaunch();
  if (!step_->plan->values[value].view.OfHidden() || step_->log.empty()) return;
  // Only the real operators make that base, so they have to run even where a commit would do.
  stats_.Diverge({DivergenceReason::kBackward, step_->cursor, "base left alone", how, "history", UserFrame()});
  Replay();
  LeaveCover();
}

void OuterLane::RevealGraph(const std::string& how) {
  if (mode_ != Mode::kCover) return;
  const auto lock = LockLaunch();
  Diverge(DivergenceReason::kBackward, "history left alone", how, "history");
}

void OuterLane::CommitOrDiverge(DivergenceReason reason, const std::string& what) {
  const auto lock = LockLaunch();
  if (mode_ != Mode::kCover || step_ == nullptr || step_->log.empty()) return;
  if (CommitAllowed()) {
    CommitAll();
  } else {
    Diverge(reason, "operators only", what, "use of memory or settings");
  }
}

// What an input looks like is about to change, without an event: a replay would find it so.
void OuterLane::BeforeReshaping(const OpInfo& info, const Stack& stack) {
  const auto lock = LockLaunch();
  if (mode_ != Mode::kCover) return;
  const auto changes = [&](const at::Tensor& tensor) {
    const auto first = stack.end() - static_cast<std::ptrdiff_t>(info.args.size());
    return std::any_of(first, stack.end(), [&](const c10::IValue& value) { return value.isTensor() && value.toTensor().is_same(tensor); });
  };
  const auto touched = [&](const c10::IValue& value) {
    if (value.isTensor()) return changes(value.toTensor());
    if (!value.isList()) return false;
    const auto list = value.toListRef();
    return std::any_of(list.begin(), list.end(), [&](const c10::IValue& element) { return element.isTensor() && changes(element.toTensor()); });
  };
  const bool logged = std::any_of(step_->log.begin(), step_->log.end(), [&](const LogEntry& entry) {
    return std::any_of(entry.args.begin(), entry.args.end(), touched);
  });
  if (logged) CommitOrDiverge(DivergenceReason::kMeta, "changed in place by " + info.name);
}

void OuterLane::SettleUncommitted(StorageRecord& record, Access access) {
  const auto lock = LockLaunch();
  if (mode_ != Mode::kCover || step_ == nullptr) return;
  const bool whole = step_->plan->slot_of_persistent.count(&record) != 0 || record.outer_step == step_->id;
  const bool viewed = record.viewed_in_log == log_id_;
  if (!whole && !viewed) return;  // nothing that was validated touches it
  if (access == Access::kHandler || access == Access::kRead) return Launch(/*final=*/false);
  // Neither what is validated nor a replay of it, launched or not, may read bytes that the program changes from here on.
  // That it keeps a storage object does not say when it does.
  CommitOrDiverge(DivergenceReason::kRawAccess, "raw access");
  if (mode_ != Mode::kCover || !whole || access != Access::kRaw) return;  // each event reads parts of storages anew
  if (UsedFromHere(record)) diverge_requested_ = true;
}

// By the plan, or by another one that may still take over.
bool OuterLane::UsedFromHere(const StorageRecord& record) const {
  const OuterStep& step = *step_;
  const int launched = step.launched_events == 0 ? 0 : step.plan->events[step.launched_events - 1].end_op;
  return std::any_of(program_->plans.begin(), program_->plans.end(), [&](const auto& plan) {
    if (plan != step.plan && plan->SharedPrefix(*step.plan) < static_cast<size_t>(step.cursor)) return false;
    const auto persistent = plan->slot_of_persistent.find(&record);
    const bool known = persistent != plan->slot_of_persistent.end();
    const int slot = known ? persistent->second : record.outer_step == step.id ? record.outer_slot : -1;
    return slot >= 0 && static_cast<size_t>(slot) < plan->last_use.size() && plan->last_use[slot] >= launched;
  });
}

// Callers hold launch_mutex_ or are the imperative thread between two events.
void OuterLane::Diverge(DivergenceReason reason, const std::string& expected, const std::string& got, const std::string& field) {
  stats_.Diverge({reason, step_->cursor, expected, got, field, UserFrame()});
  if (CommitAllowed()) {
    Launch(/*final=*/false);
  } else {
    Replay();
  }
  LeaveCover();
}

// The rest of the step runs in the inner lane.
void OuterLane::LeaveCover() {
  SetStepCovered(false);
  mode_ = Mode::kDiverged;
  dummy_.reset();
  step_->over = true;
  program_->clean = 0;
  program_->record_until = std::max<uint64_t>(program_->record_until, step_number_ + kRecordAfterDivergence);
  program_->rare.NoteUnknown(program_->steps);
  inner_.Resume();
}

}  // namespace outrider::seam
