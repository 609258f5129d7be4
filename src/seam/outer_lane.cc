#include "seam/outer_lane.h"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <atomic>

#include "seam/gil.h"
#include "seam/lazy_impl.h"
#include "seam/plan_graphs.h"
#include "seam/settle.h"

namespace outrider::seam {
namespace {

constexpr size_t kCapturedPlansMax = 8; // of them
constexpr size_t kTablesMax = 4;        // kept for another step
constexpr int kReplayedEndsMax = 3;     // steps replayed at their very end before covering pauses
constexpr uint64_t kPauseMax = 1024;    // steps

}  // namespace

void StepScratch::Clear() {
  tokens.clear();
  bound.clear();
  late.clear();
  log.clear();
  preimage_taken.clear();
  launched_slots.clear();
  fed.clear();
}

void OuterTable::Clear() {
  plan = nullptr;
  slots.clear();
  variables.clear();
  held.clear();
  preimages.clear();
  generator_offsets.clear();
  given.clear();
}

OuterStep::OuterStep(std::shared_ptr<const OuterPlan> plan_in, uint64_t id_in, StepScratch scratch)
    : StepScratch(std::move(scratch)), plan(std::move(plan_in)), id(id_in) {
  live.assign(plan->values.size(), nullptr);
  ResizeSlots(plan->slots.size());
  bound.resize(plan->externals.size());
  late.resize(plan->late_sources.size());
}

void OuterStep::ResizeSlots(size_t count) {
  if (count <= tokens.size()) return;
  tokens.resize(count);
  preimage_taken.resize(count, 0);
  launched_slots.resize(count, 0);
}

StepScratch OuterStep::Release() {
  over = true;
  table.reset();
  inputs.clear();
  draws.clear();
  Clear();
  return std::move(static_cast<StepScratch&>(*this));
}

OuterLane::OuterLane(WorkQueue& queue, StepStats& stats, InnerLane& inner) : queue_(queue), stats_(stats), inner_(inner) {}
OuterLane::~OuterLane() = default;

std::unique_lock<std::recursive_mutex> OuterLane::LockLaunch() {
  std::unique_lock<std::recursive_mutex> lock(launch_mutex_, std::try_to_lock);
  if (lock.owns_lock()) return lock;
  GilRelease without_lock;
  lock.lock();
  return lock;
}

void OuterLane::Reset() {
  programs_.clear();
  retired_.clear();
  step_.reset();
  program_ = nullptr;
}

void OuterLane::Forget(const std::string& program) { programs_.erase(program); }

// Plans whose state is gone leave; of the others, only the most recently taken keep their captured graphs.
void OuterLane::RetirePlans() {
  auto& plans = program_->plans;
  for (auto& plan : plans) {
    if (plan->Expired()) retired_.push_back(std::move(plan));
  }
  std::erase(plans, nullptr);
  if (!queue_.Idle()) return;
  retired_.clear();
  for (size_t i = kCapturedPlansMax; i < plans.size(); ++i) {
    if (plans[i]->graphs != nullptr) plans[i]->graphs->Clear();
  }
}

OuterLane::Mode OuterLane::BeginStep(uint64_t step, const std::string& program, const std::string& why_not) {
  step_number_ = step;
  thread_ = std::this_thread::get_id();
  program_ = &programs_[program];
  ++program_->steps;
  diverge_requested_ = false;
  mode_ = Mode::kOff;
  note_ = why_not;
  if (!why_not.empty()) return mode_;
  RetirePlans();
  ChooseParts();
  const auto& plans = program_->plans;
  if (step < program_->pause_until) {
    note_ = program_->why_not;
    return mode_;
  }
  const bool covers = !plans.empty() && step > program_->record_until && !program_->rare.Expects(program_->steps);
  if (covers) StartCovering();
  if (!covers) StartRecording();
  return mode_;
}

// On the plan taken last.
void OuterLane::StartCovering() {
  step_ = std::make_shared<OuterStep>(program_->plans.front(), step_number_, std::move(scratch_));
  step_->table = FreshTable();
  step_->table->outcome = stats_.outcome = std::make_shared<TierOutcome>();
  dummy_ = MakeNode<DummyNode>(*this, std::weak_ptr<OuterStep>(step_));
  dummy_->Cover(*step_->plan);
  mode_ = Mode::kCover;
  SetStepCovered(true);
}

// A committed part drops a value at its last use in the plan of that moment, unless the program holds it: its token is
// there then, since a commit takes the tokens of the others away. What another plan needs besides must never have been
// dropped. Who holds a value now has held it all the time, so no value without a token can be an argument to come; but
// a second backward reads what nobody holds, and feeds have no token. Those are fed again.
bool OuterLane::HasWhatNeeds(const OuterPlan& other) const {
  if (step_->committed_events == 0) return true;
  const OuterPlan& plan = *step_->plan;
  const int end_op = plan.events[step_->committed_events - 1].end_op;
  const size_t slots = std::min(plan.slots.size(), other.slots.size());
  for (size_t slot = 0; slot < slots; ++slot) {
    const bool in_both = other.first_use[slot] >= 0 && other.first_use[slot] < end_op;
    if (!in_both || other.last_use[slot] < end_op || other.slots[slot].persistent >= 0) continue;
    if (plan.last_use[slot] < end_op && !step_->tokens[slot] && FedTo(static_cast<int>(slot)) == nullptr) return false;
  }
  return true;
}

// The input as a whole that the step was fed into a slot, nullptr if none. Device graphs take each input once.
StorageRecord* OuterLane::FedTo(int slot) const {
  const OuterPlan& plan = *step_->plan;
  if (plan.graphs != nullptr || !plan.slots[slot].external || plan.slots[slot].snapshot) return nullptr;
  const auto& fed = step_->fed;
  const auto it = std::find_if(fed.begin(), fed.end(), [slot](const auto& entry) { return entry.first == slot; });
  return it == fed.end() ? nullptr : it->second.get();
}

// A committed part has dropped inputs at their last use in `before`; the plan of now goes on with them.
void OuterLane::FeedAgain(const OuterPlan& before) {
  if (step_->committed_events == 0) return;
  const OuterPlan& plan = *step_->plan;
  const int end_op = before.events[step_->committed_events - 1].end_op;
  for (size_t i = 0, count = std::min(plan.slots.size(), before.slots.size()); i < count; ++i) {
    const int slot = static_cast<int>(i);
    if (before.first_use[slot] < 0 || before.last_use[slot] >= end_op || plan.last_use[slot] < end_op) continue;
    StorageRecord* record = plan.slots[slot].persistent >= 0 || step_->tokens[slot] ? nullptr : FedTo(slot);
    if (record == nullptr) continue;
    Operand operand;
    operand.record = RecordPtr::reclaim_copy(record);
    step_->inputs.emplace_back(slot, std::move(operand));
  }
}

// Another plan that has been the same so far and fits from here.
bool OuterLane::SwitchPlan(const std::function<bool(const OuterPlan&)>& fits) {
  auto& plans = program_->plans;
  for (size_t i = 0; i < plans.size(); ++i) {
    if (plans[i] == step_->plan || plans[i]->SharedPrefix(*step_->plan) < static_cast<size_t>(step_->cursor)) continue;
    if (!HasWhatNeeds(*plans[i])) continue;
    const auto before = step_->plan;
    step_->plan = plans[i];
    step_->live.resize(std::max(step_->live.size(), plans[i]->values.size()), nullptr);
    step_->ResizeSlots(plans[i]->slots.size());
    step_->bound.resize(std::max(step_->bound.size(), plans[i]->externals.size()));
    step_->late.resize(std::max(step_->late.size(), plans[i]->late_sources.size()));
    if (fits(*plans[i])) {
      FeedAgain(*before);
      dummy_->Cover(*plans[i]);
      std::rotate(plans.begin(), plans.begin() + static_cast<std::ptrdiff_t>(i), plans.begin() + static_cast<std::ptrdiff_t>(i) + 1);
      return true;
    }
    step_->plan = before;
  }
  return false;
}

void OuterLane::EndStep() {
  if (mode_ == Mode::kCover) {
    const auto ends_here = [this](const OuterPlan& plan) { return plan.events.size() == static_cast<size_t>(step_->cursor); };
    const auto lock = LockLaunch();
    const bool complete = ends_here(*step_->plan) || SwitchPlan(ends_here);
    if (complete && CommitAllowed()) {
      Launch(/*final=*/true);
      step_->over = true;
      if (++program_->clean >= 1000) program_->pause_steps = 8;
      program_->replayed_ends = 0;
    } else {
      Diverge(DivergenceReason::kStepEnded, complete ? "no living history" : "more events", "end of step", "");
      if (complete && ++program_->replayed_ends == kReplayedEndsMax) {
        program_->replayed_ends = 0;
        program_->why_not = "INNER_HISTORY: a value with history outlives the step, which is then run twice";
        program_->pause_steps = kPauseMax / 4;
        Pause(*program_);
      }
    }
  }
  if (mode_ == Mode::kRecord) FinishRecording();
  LeaveStep();
}

// The graph runner has emptied the table of a step that it has finished; nobody else holds it then.
std::shared_ptr<OuterTable> OuterLane::FreshTable() {
  for (auto& table : tables_) {
    if (table.use_count() > 1) continue;
    std::atomic_thread_fence(std::memory_order_acquire);  // after the graph runner's last touch
    table->Clear();
    table->step = step_number_;
    return table;
  }
  auto table = std::make_shared<OuterTable>();
  table->step = step_number_;
  if (tables_.size() < kTablesMax) tables_.push_back(table);
  return table;
}

void OuterLane::LeaveStep() {
  const auto lock = LockLaunch();  // another thread may be settling what it reads
  mode_ = Mode::kOff;
  SetStepCovered(false);
  if (step_) scratch_ = step_->Release();
  step_.reset();
  dummy_.reset();
  ++log_id_;
  force_at_ = -1;
}

void OuterLane::AbortStep() {
  if (mode_ == Mode::kCover) {
    const auto lock = LockLaunch();
    Diverge(DivergenceReason::kException, "more events", "exception", "");
  }
  recorder_.reset();
  inner_.SetListener(nullptr);
  LeaveStep();
}

void OuterLane::Pause(Program& program) const {
  program.pause_until = step_number_ + program.pause_steps;
  program.pause_steps = std::min(program.pause_steps * 2, kPauseMax);
}

void OuterLane::OnEvent(const c10::OperatorHandle& op, c10::DispatchKeySet next, Stack* stack) {
  // The engine casts and sums up root gradients before its graph task is the current one.
  const bool engine_prepares = mode_ == Mode::kRecord && recorder_->InEvent();
  const bool inside_backward = engine_prepares || torch::autograd::get_current_graph_task_id() != -1;
  if (mode_ == Mode::kOff || mode_ == Mode::kDiverged || inside_backward) {
    op.redispatchBoxed(next, stack);
    return;
  }
  OpInfo& info = InfoOf(op);
  if (info.profiler) {
    op.redispatchBoxed(next, stack);
  } else if (mode_ == Mode::kRecord) {
    RecordEvent(info, next, stack);
  } else {
    CoverEvent(info, next, stack);
  }
}

bool OuterLane::IsBarrier(const OpInfo& info, const Stack& stack) const {
  return info.fetch || info.data_dependent || info.odd_returns || LeavesDevice(info, stack);
}

// A copy from the accelerator to the host, or into a tensor of the host.
bool OuterLane::LeavesDevice(const OpInfo& info, const Stack& stack) const {
  if (inner_.ComputeDevice().is_cpu()) return false;
  for (size_t i = 0; i < info.args.size(); ++i) {
    const auto& value = stack[stack.size() - info.args.size() + i];
    if (value.isDevice() && value.toDevice().is_cpu()) return true;
    if (info.args[i].writes && value.isTensor() && value.toTensor().defined() && value.toTensor().is_cpu()) return true;
  }
  return false;
}

bool OuterLane::IsValue(const at::Tensor& tensor) const {
  if (mode_ == Mode::kRecord) return recorder_->IsValue(tensor);
  auto* impl = tensor.unsafeGetTensorImpl();
  return KindOf(*impl) == ImplKind::kOuterPlaceholder && static_cast<OuterPlaceholder*>(impl)->Step() == step_.get();
}

// Preparing an input on the host: identity or metadata of a tensor that is no value of this step.
bool OuterLane::PreparesInput(const OpInfo& info, const Stack& stack) const {
  if (!info.changes_metadata && !info.prepares_input && !(info.view && program_->views_move)) return false;
  for (size_t i = stack.size() - info.args.size(); i < stack.size(); ++i) {
    if (!stack[i].isTensor() || !stack[i].toTensor().defined()) continue;
    const auto& tensor = stack[i].toTensor();
    if (IsValue(tensor) || tensor.requires_grad()) return false;
  }
  return true;
}

// True for arithmetic on host numbers, for operators without tensor operands, and for copies from the host to the device:
// those start at once and enter as inputs. What an event returned is no number, even where the inner lane has made a plain
// one of it.
bool OuterLane::IsHostOnly(const OpInfo& info, const Stack& stack) const {
  const auto device = inner_.ComputeDevice();
  auto is_host = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return true;
    const auto& impl = *tensor.unsafeGetTensorImpl();
    return device.is_cpu() ? IsHostNumber(impl, device) && !IsValue(tensor) : impl.device().is_cpu();
  };
  bool factory_on_device = false, any_tensor = false;
  for (size_t i = stack.size() - info.args.size(); i < stack.size(); ++i) {
    const auto& value = stack[i];
    if (value.isTensor()) {
      if (!is_host(value.toTensor())) return false;
      any_tensor |= value.toTensor().defined();
    } else if (value.isList()) {
      for (const auto& element : value.toListRef()) {
        if (!element.isTensor()) break;
        if (!is_host(element.toTensor())) return false;
        any_tensor |= element.toTensor().defined();
      }
    } else if (value.isDevice()) {
      factory_on_device = value.toDevice().type() != c10::kCPU && !device.is_cpu();
    }
  }
  return any_tensor || !factory_on_device;
}

std::string OuterLane::Describe() const {
  std::string text;
  for (const auto& [name, program] : programs_) {
    for (const auto& plan : program.plans) {
      text += name + ": events " + std::to_string(plan->events.size()) + ", device ops " + std::to_string(plan->ops.size()) +
              ", late-bound scalars " + std::to_string(plan->late_sources.size()) + ", feeds " + std::to_string(plan->feeds.size()) +
              ", persistent storages " + std::to_string(plan->persistent_records.size()) + "\n";
    }
    if (program.plans.empty()) text += name + ": no plan, " + program.why_not + "\n";
  }
  return text;
}

std::vector<const OuterPlan*> OuterLane::Plans() const {
  std::vector<const OuterPlan*> plans;
  for (const auto& [name, program] : programs_) {
    for (const auto& plan : program.plans) plans.push_back(plan.get());
  }
  return plans;
}

}  // namespace outrider::seam
