// OuterLane: validation of host events, what they take from outside, and what the program gets back.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "seam/generators.h"
#include "seam/gil.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/outer_lane.h"
#include "seam/settle.h"
#include "seam/storage_copy.h"

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
  if (!bound.defined()) return BindFeed(id, tensor);
  // The program may have made another tensor of it, of its own, without an operator.
  if (bound.unsafeGetTensorImpl() != impl || tensor.requires_grad() != external.requires_grad) return false;
  if (external.snapshot) {
    Geometry geometry = Geometry::Of(*impl);
    geometry.offset = 0;
    return geometry == external.geometry;
  }
  StorageRecord* record = RecordOf(*impl);
  if (record == nullptr || !external.geometry.Matches(*impl)) return false;
  RelaxEscape(impl->unsafe_storage(), *record);
  return !record->synchronous.load(std::memory_order_relaxed) &&
         (external.slot < 0 || (record->outer_step == step_->id && record->outer_slot == external.slot));
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
      return record == nullptr || !record->synchronous.load(std::memory_order_relaxed) || step_->plan->slots[step_->plan->values[arg.id].slot].snapshot;
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

bool OuterLane::CopiesTooMuch(const OuterEvent& event) const {
  return !event.snapshots.empty() && step_->copied_bytes > options_.copied_bytes_max;
}

bool OuterLane::MatchEvent(const OuterEvent& event, const c10::IValue* args) {
  if (!(event.env == Env::Current()) || CopiesTooMuch(event)) return false;
  newly_bound_.clear();
  for (size_t i = 0; i < event.args.size(); ++i) {
    if (!MatchArg(event.args[i], args[i])) {
      Unbind(0);
      return false;
    }
  }
  return true;
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

// Every write to such a storage is seen before it happens, and it lies at one address for as long as its record lives. A
// storage that an event of this step may write to is left out: a device graph takes all its inputs at its beginning.
bool OuterLane::ReadWhereItIs(const TensorImpl& view) const {
  const StorageRecord* record = RecordOf(view);
  const ImplKind kind = KindOf(view);
  const bool gated = kind == ImplKind::kLazy || kind == ImplKind::kOuterPlaceholder;
  if (record == nullptr || !gated || record->is_token || record->synchronous.load(std::memory_order_acquire)) return false;
  if (view.numel() == 0 || view.device().type() != inner_.ComputeDevice().type()) return false;
  if (EndByte(Geometry::Of(view)) > record->real.nbytes()) return false;
  const bool bound_as_whole = record->outer_step == step_->id && record->outer_slot >= 0;
  return !bound_as_whole && step_->plan->slot_of_persistent.count(record) == 0;
}

// Memory that may change before the device ops run, or before a replay, is copied now; the replay gets the copy.
Operand OuterLane::ViewOperand(const at::Tensor& view, int external, LogEntry& entry) {
  Operand operand;
  const TensorImpl& impl = *view.unsafeGetTensorImpl();
  if (inner_.Options().feed_clone && ReadWhereItIs(impl)) {
    operand.record = RecordPtr::reclaim_copy(RecordOf(impl));
    operand.record->viewed_in_log = log_id_;
    operand.first = static_cast<size_t>(impl.storage_offset()) * impl.itemsize();
    operand.count = EndByte(Geometry::Of(impl)) - operand.first;
    return operand;
  }
  operand.tensor = inner_.Options().feed_clone ? PrivateCopy(impl) : AliasTensor(impl.unsafe_storage(), impl);
  const auto bytes = static_cast<int64_t>(operand.tensor.unsafeGetTensorImpl()->unsafe_storage().nbytes());
  stats_.copied_bytes += bytes;
  step_->copied_bytes += bytes;
  entry.snapshots.emplace_back(external, operand.tensor);
  return operand;
}

void OuterLane::BindOperands(const OuterEvent& event, LogEntry& entry) {
  for (int id : newly_bound_) {
    const External& external = step_->plan->externals[id];
    ++stats_.feeds;
    if (external.snapshot || external.slot < 0) continue;
    Operand operand;
    operand.record = RecordPtr::reclaim_copy(RecordOf(*step_->bound[id].unsafeGetTensorImpl()));
    operand.record->outer_step = step_->id;
    operand.record->outer_slot = external.slot;
    step_->inputs.emplace_back(external.slot, std::move(operand));
  }
  for (const auto& snapshot : event.snapshots) {
    const at::Tensor& source = step_->bound[snapshot.external];
    TORCH_CHECK(source.defined(), "outrider: an input was not bound before it was needed");
    Operand operand = ViewOperand(source, snapshot.external, entry);
    step_->inputs.emplace_back(snapshot.slot, std::move(operand));
  }
}

// Random numbers of the CPU are drawn here and now, in the order of the program; the graph runner gets them as feeds.
void OuterLane::DrawNumbers(const OuterEvent& event, LogEntry& entry) {
  if (!event.host_draw) return;
  entry.generator_state = CpuGeneratorState();
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OuterPlan& plan = *step_->plan;
  for (int i = event.first_op; i < event.end_op; ++i) {
    const DeviceOp& op = plan.ops[i];
    if (!op.host_draw) continue;
    Stack stack;
    for (const Arg& arg : op.args) {
      if (arg.code == Code::kVariable) {  // filled, or only looked at for its geometry
        const Geometry& geometry = plan.variables[arg.id].geometry;
        stack.emplace_back(at::empty_strided(geometry.sizes, geometry.strides, at::TensorOptions().dtype(geometry.dtype)));
      } else {
        stack.push_back(arg.code == Code::kLate ? step_->late[arg.id] : arg.constant);
      }
    }
    op.info->handle.callBoxed(&stack);
    step_->draws.emplace_back(i, stack[0].toTensor());
    ++stats_.host_ops;
  }
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
  KeepNumbers(event, entry);
}

// The program may change a number behind the event, which a replay would read: the log gets what was matched.
void OuterLane::KeepNumbers(const OuterEvent& event, LogEntry& entry) const {
  const auto matched = [&](const Arg& arg, const at::Tensor& tensor) -> at::Tensor {
    if (!tensor.defined() || tensor.requires_grad()) return tensor;
    if (arg.code == Code::kNumber) return arg.constant.toTensor();
    return arg.code == Code::kLate ? step_->late[arg.id].toTensor() : tensor;
  };
  const auto is_number = [](const Arg& arg) { return arg.code == Code::kNumber || arg.code == Code::kLate; };
  for (size_t i = 0; i < event.args.size(); ++i) {
    const Arg& arg = event.args[i];
    if (is_number(arg) && entry.args[i].isTensor()) entry.args[i] = matched(arg, entry.args[i].toTensor());
    if (arg.code != Code::kList || std::none_of(arg.list.begin(), arg.list.end(), is_number)) continue;
    if (arg.optional_list) {
      c10::List<std::optional<at::Tensor>> list;
      const c10::ArrayRef<c10::IValue> elements = entry.args[i].toListRef();
      for (size_t k = 0; k < arg.list.size(); ++k) {
        const c10::IValue& element = elements.begin()[k];
        list.push_back(element.isNone() ? std::optional<at::Tensor>() : matched(arg.list[k], element.toTensor()));
      }
      entry.args[i] = std::move(list);
    } else {
      c10::List<at::Tensor> list;
      for (size_t k = 0; k < arg.list.size(); ++k) list.push_back(matched(arg.list[k], entry.args[i].toListRef()[k].toTensor()));
      entry.args[i] = std::move(list);
    }
  }
}

void OuterLane::CoverEvent(OpInfo& info, c10::DispatchKeySet next, Stack* stack) {
  if (IsHostOnly(info, *stack) || PreparesInput(info, *stack) || IsQuestion(info)) {
    if (info.changes_metadata) BeforeReshaping(info, *stack);
    info.handle.redispatchBoxed(next, stack);
    return;
  }
  if (IsBarrier(info, *stack)) {
    // The operator reads values: settle them, then run it on the real ones. Operators below see materialised tensors.
    stats_.Flush(info.fetch ? FlushReason::kFetch : FlushReason::kDataDependent);
    if (info.fetch) ++stats_.fetches;
    if (info.writes_any && !LeavesDevice(info, *stack)) CommitOrDiverge(DivergenceReason::kRawAccess, "written by operator " + info.name);
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
