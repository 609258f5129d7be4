// OuterLane: validation of host events and what the program gets back.

#include <ATen/core/List.h>
#include <ATen/SavedTensorHooks.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/variable.h>

#include "seam/gil.h"
#include "seam/lazy_impl.h"
#include "seam/outer_lane.h"
#include "seam/settle.h"

namespace outrider::seam {

using c10::TensorImpl;
using Code = Arg::Code;

bool OuterLane::BindFeed(int id, const at::Tensor& tensor) {
  const OuterPlan& plan = *step_->plan;
  const External& external = plan.externals[id];
  TensorImpl* impl = tensor.unsafeGetTensorImpl();
  if (KindOf(*impl) == ImplKind::kOuterPlaceholder && static_cast<OuterPlaceholder*>(impl)->Step() == step_.get()) return false;
  if (tensor.requires_grad() != external.requires_grad || !tensor.is_leaf() || !IsPlainStrided(*impl)) return false;
  Geometry geometry = Geometry::Of(*impl);
  if (external.snapshot) geometry.offset = 0;
  if (!(geometry == external.geometry)) return false;
  const bool owned = Graft(*impl);
  StorageRecord* record = owned ? RecordOf(*impl) : nullptr;
  if (record != nullptr && plan.slot_of_persistent.count(record) != 0) return false;
  if (!external.snapshot) {
    if (record == nullptr || record->synchronous.load(std::memory_order_relaxed)) return false;
    if (impl->unsafe_storage().nbytes() < external.storage_nbytes) return false;
    // The same storages must be shared between inputs as in the recording.
    for (int other : plan.feeds) {
      const at::Tensor& bound = step_->bound[other];
      if (!bound.defined() || plan.externals[other].snapshot) continue;
      const bool shared = bound.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl() == impl->unsafe_storage().unsafeGetStorageImpl();
      if (shared != (plan.externals[other].slot == external.slot)) return false;
    }
  }
  step_->bound[id] = tensor;
  newly_bound_.push_back(id);
  return true;
}

bool OuterLane::MatchExternal(int id, const at::Tensor& tensor) {
  const External& external = step_->plan->externals[id];
  TensorImpl* impl = tensor.unsafeGetTensorImpl();
  if (external.persistent) {
    if (impl != external.identity || impl->unsafe_storage().unsafeGetStorageImpl() != external.storage) return false;
    StorageRecord* record = RecordOf(*impl);
    if (record != nullptr) RelaxEscape(impl->unsafe_storage(), *record);
    return record != nullptr && !record->synchronous.load(std::memory_order_relaxed) && external.geometry.Matches(*impl) &&
           tensor.requires_grad() == external.requires_grad;
  }
  const at::Tensor& bound = step_->bound[id];
  return bound.defined() ? bound.unsafeGetTensorImpl() == impl : BindFeed(id, tensor);
}

bool OuterLane::MatchTensor(const Arg& arg, const at::Tensor& tensor) {
  if (!tensor.defined()) return arg.code == Code::kUndefined;
  TensorImpl* impl = tensor.unsafeGetTensorImpl();
  switch (arg.code) {
    case Code::kValue: {
      if (KindOf(*impl) != ImplKind::kOuterPlaceholder) return false;
      const auto* placeholder = static_cast<OuterPlaceholder*>(impl);
      if (placeholder->Step() != step_.get() || placeholder->Value() != arg.id) return false;
      const StorageRecord* record = RecordOf(*impl);
      return record == nullptr || !record->synchronous.load(std::memory_order_relaxed) || step_->plan->slots[step_->plan->values[arg.id].slot].external;
    }
    case Code::kNumber: return IsHostNumber(*impl, inner_.ComputeDevice()) && SameNumber(tensor, arg.constant.toTensor());
    case Code::kLate: return MatchLateNumber(arg, tensor);
    case Code::kExternal: return MatchExternal(arg.id, tensor);
    default: return false;
  }
}

bool OuterLane::MatchLateNumber(const Arg& arg, const c10::IValue& value) {
  if (!value.isTensor() || !value.toTensor().defined()) return false;
  const auto& tensor = value.toTensor();
  const auto& known = *arg.constant.toTensor().unsafeGetTensorImpl();
  const auto& impl = *tensor.unsafeGetTensorImpl();
  if (!IsHostNumber(impl, inner_.ComputeDevice()) || impl.dtype() != known.dtype() || impl.is_wrapped_number() != known.is_wrapped_number()) return false;
  step_->late[arg.id] = CopyNumber(tensor);
  return true;
}

bool OuterLane::MatchArg(const Arg& arg, const c10::IValue& value) {
  switch (arg.code) {
    case Code::kNone: return value.isNone();
    case Code::kConstant: return StructurallyEqual(arg.constant, value);
    case Code::kLate: {
      if (arg.constant.isTensor()) return MatchLateNumber(arg, value);
      if (value.isDouble() != arg.constant.isDouble() || value.isList() != arg.constant.isList()) return false;
      if (value.isList() && (value.toListRef().size() != arg.constant.toListRef().size() || !value.toListRef().front().isDouble())) return false;
      step_->late[arg.id] = value;
      return true;
    }
    case Code::kList: {
      if (!value.isList()) return false;
      const auto list = value.toListRef();
      if (list.size() != arg.list.size()) return false;
      for (size_t i = 0; i < list.size(); ++i) {
        if (list[i].isNone() ? arg.list[i].code != Code::kNone : !list[i].isTensor() || !MatchTensor(arg.list[i], list[i].toTensor())) return false;
      }
      return true;
    }
    default: return value.isTensor() && MatchTensor(arg, value.toTensor());
  }
}

void OuterLane::Unbind(size_t keep) {
  while (newly_bound_.size() > keep) {
    step_->bound[newly_bound_.back()] = at::Tensor();
    newly_bound_.pop_back();
  }
}

bool OuterLane::MatchEvent(const OuterEvent& event, const c10::IValue* args) {
  if (!(event.env == Env::Current())) return false;
  newly_bound_.clear();
  for (size_t i = 0; i < event.args.size(); ++i) {
    if (!MatchArg(event.args[i], args[i])) {
      Unbind(0);
      return false;
    }
  }
  return true;
}

// What the program got from the one is what it would have got from the other.
static bool SameResult(const OuterValue& a, const OuterValue& b) {
  return a.geometry == b.geometry && a.keys == b.keys && a.requires_grad == b.requires_grad && a.is_leaf == b.is_leaf && a.slot == b.slot &&
         a.counter == b.counter && a.version == b.version && a.view == b.view;
}

static bool SameExternal(const External& x, const External& y) {
  return x.persistent == y.persistent && x.slot == y.slot && x.geometry == y.geometry && x.requires_grad == y.requires_grad &&
         x.snapshot == y.snapshot && (!x.persistent || x.identity == y.identity);
}

// Externals with equal numbers may be different tensors of the program, also those in a list.
static bool SameTensors(const OuterPlan& plan, const OuterPlan& other, const Arg& a, const Arg& b) {
  if (a.code == Code::kExternal && !SameExternal(plan.externals[a.id], other.externals[b.id])) return false;
  for (size_t k = 0; k < a.list.size(); ++k) {
    if (!SameTensors(plan, other, a.list[k], b.list[k])) return false;
  }
  return true;
}

static bool SameArguments(const OuterPlan& plan, const OuterPlan& other, const std::vector<Arg>& a, const std::vector<Arg>& b) {
  if (a.size() != b.size()) return false;
  for (size_t k = 0; k < a.size(); ++k) {
    if (!SameArg(a[k], b[k]) || !SameTensors(plan, other, a[k], b[k])) return false;
  }
  return true;
}

static bool SameLeaves(const OuterPlan& plan, const OuterPlan& other, const OuterEvent& a, const OuterEvent& b) {
  if (a.leaves != b.leaves || a.leaf_values != b.leaf_values || !SameArguments(plan, other, a.leaf_grads, b.leaf_grads)) return false;
  return std::all_of(a.leaves.begin(), a.leaves.end(),
                     [&](int id) { return SameExternal(plan.externals[id], other.externals[id]); });
}

static bool SameOp(const DeviceOp& a, const DeviceOp& b) {
  bool same = a.info == b.info && a.args.size() == b.args.size() && a.writes == b.writes && a.outputs.size() == b.outputs.size();
  for (size_t k = 0; same && k < a.args.size(); ++k) same = SameArg(a.args[k], b.args[k]);
  for (size_t k = 0; same && k < a.outputs.size(); ++k) same = SameArg(a.outputs[k], b.outputs[k]);
  return same;
}

static bool SameOutputs(const OuterPlan& plan, const OuterPlan& other, const OuterEvent& a, const OuterEvent& b) {
  for (size_t k = 0; k < a.outputs.size(); ++k) {
    const auto& x = a.outputs[k];
    const auto& y = b.outputs[k];
    if (x.kind != y.kind || x.value != y.value || x.values != y.values || x.arg != y.arg || x.element != y.element) return false;
    if (x.value >= 0 && !SameResult(plan.values[x.value], other.values[x.value])) return false;
    for (int value : x.values) {
      if (!SameResult(plan.values[value], other.values[value])) return false;
    }
  }
  return true;
}

size_t OuterPlan::SharedPrefix(const OuterPlan& other) const {
  std::erase_if(shared_, [](const auto& entry) { return entry.first.expired(); });
  const auto known = std::find_if(shared_.begin(), shared_.end(), [&](const auto& entry) { return entry.first.lock().get() == &other; });
  if (known != shared_.end()) return known->second;
  const size_t shared = CompareEvents(other);
  shared_.emplace_back(other.weak_from_this(), shared);
  return shared;
}

size_t OuterPlan::CompareEvents(const OuterPlan& other) const {
  const size_t limit = std::min(events.size(), other.events.size());
  for (size_t i = 0; i < limit; ++i) {
    const OuterEvent& a = events[i];
    const OuterEvent& b = other.events[i];
    bool same = a.info == b.info && a.backward == b.backward && a.env == b.env && a.first_op == b.first_op &&
                a.end_op == b.end_op && a.snapshots.size() == b.snapshots.size() && a.outputs.size() == b.outputs.size() &&
                SameArguments(*this, other, a.args, b.args) && SameLeaves(*this, other, a, b);
    for (int op = a.first_op; same && op < a.end_op; ++op) same = SameOp(ops[op], other.ops[op]);
    if (!same || !SameOutputs(*this, other, a, b)) return i;
  }
  return limit;
}

// A committed part drops a value at its last use in the plan of that moment, unless the program holds it: its token is
// there then, since a commit takes the tokens of the others away. What another plan needs besides must never have been
// dropped. Who holds a value now has held it all the time, so no value without a token can be an argument to come; but
// feeds have none, and a second backward reads what nobody holds.
bool OuterLane::HasWhatNeeds(const OuterPlan& other) const {
  if (step_->committed_events == 0) return true;
  const OuterPlan& plan = *step_->plan;
  const int end_op = plan.events[step_->committed_events - 1].end_op;
  const size_t slots = std::min(plan.slots.size(), other.slots.size());
  for (size_t slot = 0; slot < slots; ++slot) {
    const bool in_both = other.first_use[slot] >= 0 && other.first_use[slot] < end_op;
    if (!in_both || other.last_use[slot] < end_op || other.slots[slot].persistent >= 0) continue;
    if (plan.last_use[slot] < end_op && !step_->tokens[slot]) return false;
  }
  return true;
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
      dummy_->Cover(*plans[i]);
      std::rotate(plans.begin(), plans.begin() + static_cast<std::ptrdiff_t>(i), plans.begin() + static_cast<std::ptrdiff_t>(i) + 1);
      return true;
    }
    step_->plan = before;
  }
  return false;
}

bool OuterLane::MatchHere(OpInfo& info, const c10::IValue* args) {
  if (diverge_requested_ || step_->cursor == force_at_ || c10::impl::dispatch_mode_enabled()) return false;
  if (!at::SavedTensorDefaultHooks::get_tls_state().stack.empty()) return false;
  const auto fits = [&](const OuterPlan& plan) {
    if (plan.events.size() <= static_cast<size_t>(step_->cursor)) return false;
    const OuterEvent& event = plan.events[step_->cursor];
    return event.info == &info && MatchEvent(event, args);
  };
  return fits(*step_->plan) || SwitchPlan(fits);
}

void OuterLane::BumpVersions(const OuterEvent& event, const LogEntry& entry, int direction) {
  if (!inner_.Options().version_replay) return;
  c10::SmallVector<std::pair<c10::VariableVersion, int64_t>, 8> versions;  // arguments may share one counter
  for (const auto& bump : event.bumps) {
    const at::Tensor tensor = TensorAt(entry.args, bump.place);
    if (tensor.is_inference()) continue;
    const auto& counter = tensor.unsafeGetTensorImpl()->version_counter();
    versions.emplace_back(counter, counter.current_version() + direction * static_cast<int64_t>(bump.count));
  }
  for (auto& [counter, version] : versions) counter.set_version(version);
}

void OuterLane::ReturnEvent(const OuterEvent& event, Stack* stack, LogEntry& entry) {
  const size_t count = event.args.size();
  const size_t first = stack->size() - count;
  entry.args.assign(std::make_move_iterator(stack->begin() + static_cast<std::ptrdiff_t>(first)), std::make_move_iterator(stack->end()));
  torch::jit::drop(*stack, count);
  BumpVersions(event, entry, +1);
  for (const auto& output : event.outputs) {
    switch (output.kind) {
      case OuterOutput::Kind::kUndefined: stack->emplace_back(at::Tensor()); break;
      case OuterOutput::Kind::kValue: stack->emplace_back(MakePlaceholder(output.value, &entry.args)); break;
      case OuterOutput::Kind::kArgument: {
        stack->emplace_back(TensorAt(entry.args, {output.arg, output.element}));
        break;
      }
      case OuterOutput::Kind::kList: {
        c10::List<at::Tensor> list;
        for (int value : output.values) list.push_back(MakePlaceholder(value, &entry.args));
        stack->push_back(std::move(list));
        break;
      }
    }
  }
}

void OuterLane::CoverEvent(OpInfo& info, c10::DispatchKeySet next, Stack* stack) {
  if (IsHostOnly(info, *stack) || PreparesInput(info, *stack) || IsQuestion(info)) {
    info.handle.redispatchBoxed(next, stack);
    return;
  }
  if (IsBarrier(info, *stack)) {
    // The operator reads values: settle them, then run it on the real ones. Operators below see materialised tensors.
    stats_.Flush(info.fetch ? FlushReason::kFetch : FlushReason::kDataDependent);
    if (info.fetch) ++stats_.fetches;
    if (info.writes_any && !LeavesDevice(info, *stack)) LetGoOfLog("written by operator " + info.name);
    HandlerDepth depth;
    info.handle.redispatchBoxed(next, stack);
    return;
  }
  auto lock = LockLaunch();
  if (mode_ != Mode::kCover) {  // a backward pass of another thread has just ended the cover
    lock.unlock();
    info.handle.redispatchBoxed(next, stack);
    return;
  }
  const c10::IValue* args = stack->data() + stack->size() - info.args.size();
  if (MatchHere(info, args)) {
    const OuterEvent& event = step_->plan->events[step_->cursor];
    LogEntry entry;
    entry.event = step_->cursor;
    BindOperands(event, entry);
    DrawNumbers(event, entry);
    ReturnEvent(event, stack, entry);
    step_->log.push_back(std::move(entry));
    ++step_->cursor;
    ++stats_.events;
    SetUncommittedWork(true);
    if (const auto early = EarlyLaunchDue(); early != EarlyLaunch::kNone) Launch(/*final=*/false, early == EarlyLaunch::kUndoable);
    if (!inner_.DebugFlushDue()) return;
    Launch(/*final=*/false);
    queue_.WaitAll();
    return;
  }
  const Divergence found = Diagnose(info, args);
  Diverge(found.reason, found.expected, found.got, found.field);
  lock.unlock();
  info.handle.redispatchBoxed(next, stack);
}

}  // namespace outrider::seam
