// OuterLane: an event does not fit its plan. First why, in words of the program; then the step becomes the eager step it
// would have been. No effect of the uncommitted events remains; the real operators run on the logged arguments, and living
// placeholders take over what they produce.

#include <ATen/SavedTensorHooks.h>
#include <ATen/autocast_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "seam/generators.h"
#include "seam/gil.h"
#include "seam/keys.h"
#include "seam/outer_lane.h"
#include "seam/settle.h"
#include "seam/storage_copy.h"
#include "seam/storage_record.h"

namespace outrider::seam {
namespace {

constexpr size_t kTextMax = 80;  // characters

std::string TextOf(const at::Tensor& tensor) {
  return tensor.defined() ? Geometry::Of(*tensor.unsafeGetTensorImpl()).Text() : "no tensor";
}

// The shortest that reads back as the same number.
std::string TextOf(double number) {
  std::array<char, 32> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), number).ptr;
  return {text.data(), end};
}

// torch could print it into a stream, but a stream must not cross between libraries built with other C++ runtimes.
std::string TextOf(const c10::IValue& value) {
  if (value.isTensor()) return TextOf(value.toTensor());
  if (value.isTensorList()) return std::to_string(value.toListRef().size()) + " tensors";
  if (value.isNone()) return "None";
  if (value.isBool()) return value.toBool() ? "True" : "False";
  if (value.isInt()) return std::to_string(value.toInt());
  if (value.isDouble()) return TextOf(value.toDouble());
  if (value.isString()) return value.toStringRef();
  if (value.isDevice()) return value.toDevice().str();
  if (!value.isList()) return value.tagKind();
  std::string text = "[";
  for (const auto& element : value.toListRef()) {
    text += (text.size() == 1 ? "" : ", ") + TextOf(element);
    if (text.size() > kTextMax) return text.substr(0, kTextMax) + "...";
  }
  return text + "]";
}

std::string TextOf(const Arg& arg) {
  switch (arg.code) {
    case Arg::Code::kNone: return "None";
    case Arg::Code::kUndefined: return "no tensor";
    case Arg::Code::kList: return std::to_string(arg.list.size()) + " tensors";
    case Arg::Code::kConstant: return TextOf(arg.constant);
    case Arg::Code::kNumber: return "the recorded number";
    default: return "a tensor";
  }
}

std::string Placement(const Geometry& geometry) {
  std::string text = "strides (";
  for (size_t i = 0; i < geometry.strides.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(geometry.strides[i]);
  return text + "), offset " + std::to_string(geometry.offset);
}

std::string OnOff(bool on) { return on ? "on" : "off"; }

Divergence Of(DivergenceReason reason, std::string field, std::string expected, std::string got) {
  Divergence divergence;
  divergence.reason = reason;
  divergence.field = std::move(field);
  divergence.expected = std::move(expected);
  divergence.got = std::move(got);
  return divergence;
}

Divergence EnvDifference(const Env& recorded, const Env& now) {
  const auto differs = [](const char* field, std::string expected, std::string got) {
    return Of(DivergenceReason::kEnv, field, std::move(expected), std::move(got));
  };
  if (recorded.grad != now.grad) return differs("gradient mode", OnOff(recorded.grad), OnOff(now.grad));
  if (recorded.inference != now.inference) return differs("inference mode", OnOff(recorded.inference), OnOff(now.inference));
  if (recorded.autocast_cpu != now.autocast_cpu) return differs("autocast", OnOff(recorded.autocast_cpu), OnOff(now.autocast_cpu));
  if (recorded.autocast_cuda != now.autocast_cuda) return differs("autocast", OnOff(recorded.autocast_cuda), OnOff(now.autocast_cuda));
  if (recorded.default_dtype != now.default_dtype) {
    return differs("default dtype", c10::toString(recorded.default_dtype), c10::toString(now.default_dtype));
  }
  if (recorded.flags != now.flags) return differs("a setting that changes numerics", "as it was", "another");
  if (!(recorded.stream == now.stream)) return differs("stream", "the recorded one", "another");
  return differs("autocast", "with the recorded dtype and cache", "with others");
}

}  // namespace

// The operator that a value comes from.
std::string OuterLane::OriginOf(int value) const {
  for (const auto& event : step_->plan->events) {
    for (const auto& output : event.outputs) {
      if (output.value != value && std::count(output.values.begin(), output.values.end(), value) == 0) continue;
      return "a result of " + event.info->name;
    }
  }
  return "a gradient";
}

Divergence OuterLane::DiagnoseTensor(const Arg& arg, const at::Tensor& tensor, const std::string& name) const {
  const bool external = arg.code == Arg::Code::kExternal;
  if (!tensor.defined() || (!external && arg.code != Arg::Code::kValue)) return Of(DivergenceReason::kArgument, name, TextOf(arg), TextOf(tensor));
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  const External* input = external ? &step_->plan->externals[arg.id] : nullptr;
  const Geometry& expected = external ? input->geometry : step_->plan->values[arg.id].geometry;
  Geometry got = Geometry::Of(impl);
  if (input == nullptr || input->snapshot) got.offset = expected.offset;
  if (expected.Text() != got.Text()) return Of(DivergenceReason::kMeta, name, expected.Text(), got.Text());
  if (!(expected == got)) return Of(DivergenceReason::kMeta, name, Placement(expected), Placement(got));
  const bool requires_grad = external ? input->requires_grad : step_->plan->values[arg.id].requires_grad;
  if (requires_grad != tensor.requires_grad()) {
    return Of(DivergenceReason::kMeta, "requires_grad of " + name, OnOff(requires_grad), OnOff(tensor.requires_grad()));
  }
  const StorageRecord* record = RecordOf(impl);
  if (record != nullptr && record->synchronous.load(std::memory_order_relaxed)) {
    return Of(DivergenceReason::kRawAccess, name, "memory that only tensors use", "memory that is used directly");
  }
  const std::string recorded = !external ? OriginOf(arg.id) : input->persistent ? "the same tensor in each step" : "an input of its own";
  const std::string now = IsCovered(impl) ? OriginOf(static_cast<const OuterPlaceholder&>(impl).Value()) : "another tensor";
  return Of(DivergenceReason::kWiring, name, recorded, now);
}

Divergence OuterLane::DiagnoseArgument(const Arg& arg, const c10::IValue& value, const std::string& name) {
  if (arg.code == Arg::Code::kList && value.isList() && value.toListRef().size() == arg.list.size()) {
    const auto list = value.toListRef();
    for (size_t i = 0; i < list.size(); ++i) {
      if (!list[i].isTensor() || MatchTensor(arg.list[i], list[i].toTensor())) continue;
      return DiagnoseTensor(arg.list[i], list[i].toTensor(), name + "[" + std::to_string(i) + "]");
    }
  }
  if (value.isTensor() && arg.code != Arg::Code::kList && arg.code != Arg::Code::kConstant) return DiagnoseTensor(arg, value.toTensor(), name);
  return Of(DivergenceReason::kArgument, name, TextOf(arg), TextOf(value));
}

Divergence OuterLane::Diagnose(const OpInfo& info, const c10::IValue* args) {
  const bool known = static_cast<size_t>(step_->cursor) < step_->plan->events.size();
  const OuterEvent* event = known ? &step_->plan->events[step_->cursor] : nullptr;
  const std::string name = event == nullptr ? "end of step" : event->backward ? "backward" : event->info->name;
  if (step_->cursor == force_at_) return Of(DivergenceReason::kForced, "operator", name, info.name);
  if (diverge_requested_) return Of(DivergenceReason::kRawAccess, "memory", "left to operators", "used directly");
  if (c10::impl::dispatch_mode_enabled()) return Of(DivergenceReason::kEnv, "dispatch mode", "none", "active");
  if (!at::SavedTensorDefaultHooks::get_tls_state().stack.empty()) return Of(DivergenceReason::kEnv, "saved-tensor hooks", "none", "active");
  if (event == nullptr || event->info != &info) return Of(DivergenceReason::kNewPath, "operator", name, info.name);
  const Env env = Env::Current();
  if (!(event->env == env)) return EnvDifference(event->env, env);
  if (CopiesTooMuch(*event)) return Of(DivergenceReason::kRawAccess, "memory that others may write to", "few copies of it in a step", "many");
  newly_bound_.clear();
  Divergence found = Of(DivergenceReason::kNewPath, "operator", name, info.name);
  for (size_t i = 0; i < event->args.size(); ++i) {
    if (MatchArg(event->args[i], args[i])) continue;
    const auto& argument = info.handle.schema().arguments()[i].name();
    found = DiagnoseArgument(event->args[i], args[i], argument + " of " + info.name);
    break;
  }
  Unbind(0);
  return found;
}

namespace {

// The autograd meta of a tensor, taken out of it: history, output number and view relation move as one. TensorImpl has no
// release for it, and a copy would leave two owners of one gradient accumulator; an explicit instantiation may name it.
using MetaMember = std::unique_ptr<c10::AutogradMetaInterface> c10::TensorImpl::*;
MetaMember AutogradMetaMember();

template <MetaMember member>
struct MetaAccess {
  friend MetaMember AutogradMetaMember() { return member; }
};
template struct MetaAccess<&c10::TensorImpl::autograd_meta_>;

std::unique_ptr<c10::AutogradMetaInterface> TakeAutogradMeta(c10::TensorImpl& tensor) { return std::move(tensor.*AutogradMetaMember()); }

// Puts the bytes that an event saw back into the program's own memory for the time of its replay.
class ForeignMemory {
 public:
  ForeignMemory(const OuterStep& step, const LogEntry& entry) {
    for (const auto& [external, seen] : entry.snapshots) {
      // An alias without version ties: autograd must not take this for a change.
      const auto& impl = *step.bound[external].unsafeGetTensorImpl();
      const auto* record = RecordOf(impl);
      const at::Tensor tensor = AliasTensor(record != nullptr ? record->real : impl.unsafe_storage(), impl);
      saved_.emplace_back(tensor, tensor.clone());
      tensor.copy_(seen);
    }
  }
  ~ForeignMemory() {
    for (auto& [tensor, now] : saved_) tensor.copy_(now);
  }
  ForeignMemory(const ForeignMemory&) = delete;
  ForeignMemory& operator=(const ForeignMemory&) = delete;

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> saved_;
};

// For the time of a replay, inputs require grad as they did when they were used.
class LeavesAsRecorded {
 public:
  explicit LeavesAsRecorded(const OuterStep& step) {
    for (size_t i = 0; i < step.plan->externals.size(); ++i) {
      const External& external = step.plan->externals[i];
      const at::Tensor tensor = external.persistent ? at::Tensor(external.tensor.lock()) : step.bound[i];
      if (!tensor.defined() || !tensor.is_leaf() || tensor.requires_grad() == external.requires_grad) continue;
      tensor.set_requires_grad(external.requires_grad);
      changed_.push_back(tensor);
    }
  }
  ~LeavesAsRecorded() {
    for (const at::Tensor& tensor : changed_) tensor.set_requires_grad(!tensor.requires_grad());
  }
  LeavesAsRecorded(const LeavesAsRecorded&) = delete;
  LeavesAsRecorded& operator=(const LeavesAsRecorded&) = delete;

 private:
  std::vector<at::Tensor> changed_;
};

// Where eager code dispatches: no lane, nothing a caller of the handler may have switched off.
class CleanDispatch {
 public:
  CleanDispatch()
      : guard_(c10::default_included_set, c10::default_excluded_set | c10::DispatchKeySet(Keys().inner) | c10::DispatchKeySet(Keys().outer)) {}

 private:
  c10::impl::ForceDispatchKeyGuard guard_;
};

}  // namespace

void OuterLane::RestorePreimages() {
  for (const auto& [slot, preimage] : step_->table->preimages) OverwriteStorage(preimage.target, preimage.copy);
  step_->table->preimages.clear();
  for (const auto& [generator, offset] : step_->table->generator_offsets) SetGeneratorOffset(generator, offset);
  step_->table->generator_offsets.clear();
}

void OuterLane::Adopt(int value, const at::Tensor& result) {
  const int slot = step_->plan->values[value].slot;
  if (c10::Storage& token = step_->tokens[slot]) {
    const c10::Storage& real = result.unsafeGetTensorImpl()->unsafe_storage();
    StorageRecord* record = RecordOf(token.unsafeGetStorageImpl());
    // A view of a committed value lies in the token itself.
    if (record != nullptr && real.unsafeGetStorageImpl() != token.unsafeGetStorageImpl()) {
      record->real = real;
      record->borrowed = false;
    }
  }
  OuterPlaceholder* placeholder = step_->live[value];
  if (placeholder == nullptr) return;
  c10::TensorImpl& impl = *result.unsafeGetTensorImpl();
  placeholder->ReplaceStorage(impl.unsafe_storage());
  placeholder->set_storage_offset(impl.storage_offset());
  if (!impl.is_inference()) placeholder->set_version_counter(impl.version_counter());
  placeholder->set_autograd_meta(TakeAutogradMeta(impl));
}

at::Tensor OuterLane::LeafOf(const OuterEvent& event, size_t index) const {
  return at::Tensor(step_->plan->externals[event.leaves[index]].tensor.lock());
}

void OuterLane::ReplayBackward(const OuterEvent& event, LogEntry& entry) {
  for (size_t i = 0; i < event.leaves.size(); ++i) LeafOf(event, i).mutable_grad() = entry.gradients_before[i];
  const size_t roots = event.args.size() / 2;
  torch::autograd::edge_list edges;
  std::vector<at::Tensor> gradients;
  for (size_t i = 0; i < roots; ++i) {
    edges.push_back(torch::autograd::impl::gradient_edge(entry.args[i].toTensor()));
    gradients.push_back(entry.args[roots + i].toTensor());
  }
  {
    GilRelease without_lock;
    RunBackward(edges, gradients, /*keep_graph=*/false, /*create_graph=*/false);
  }
  for (size_t i = 0; i < event.leaves.size(); ++i) {
    if (event.leaf_values[i] >= 0) Adopt(event.leaf_values[i], LeafOf(event, i).grad());
  }
}

void OuterLane::ReplayEvent(LogEntry& entry) {
  const OuterEvent& event = step_->plan->events[entry.event];
  const c10::InferenceMode as_recorded(event.env.inference);
  event.env.Restore();
  ++stats_.replayed_events;
  const ForeignMemory as_it_was(*step_, entry);
  if (event.backward) {
    ReplayBackward(event, entry);
    return;
  }
  if (entry.generator_state) SetCpuGeneratorState(*entry.generator_state);
  Stack stack(entry.args.begin(), entry.args.end());
  event.info->handle.callBoxed(&stack);
  for (size_t i = 0; i < event.outputs.size(); ++i) {
    const auto& output = event.outputs[i];
    if (output.kind == OuterOutput::Kind::kValue) Adopt(output.value, stack[i].toTensor());
    if (output.kind != OuterOutput::Kind::kList) continue;
    const auto list = stack[i].toListRef();
    for (size_t j = 0; j < output.values.size(); ++j) Adopt(output.values[j], list[j].toTensor());
  }
}

// Edges to the dummy node may be in other hands: a caller of the engine, a custom function about to be applied.
void OuterLane::HandHistoryOn() {
  size_t ours = 1;  // committed values keep theirs
  for (const OuterPlaceholder* placeholder : step_->live) {
    const auto* meta = placeholder == nullptr ? nullptr : static_cast<const torch::autograd::AutogradMeta*>(placeholder->autograd_meta());
    if (meta != nullptr && meta->grad_fn_.get() == dummy_.get()) ++ours;
  }
  if (static_cast<size_t>(dummy_.use_count()) == ours) return;
  torch::autograd::edge_list real(dummy_->num_inputs());
  for (size_t value = 0; value < real.size(); ++value) {
    OuterPlaceholder* placeholder = step_->live[value];
    if (placeholder == nullptr || !NeedsHistory(step_->plan->values[value])) continue;
    const at::Tensor tensor(c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>::reclaim_copy(placeholder));
    auto edge = torch::autograd::impl::gradient_edge(tensor);
    if (edge.function.get() != dummy_.get()) real[value] = std::move(edge);
  }
  dummy_->HandOn(*step_->plan, std::move(real));
}

void OuterLane::Replay() {
  queue_.WaitAll();
  ++log_id_;
  SetStepCovered(false);
  RestorePreimages();
  const OuterPlan& plan = *step_->plan;
  std::vector<LogEntry> log = std::move(step_->log);
  step_->log.clear();
  std::vector<std::pair<at::Tensor, at::Tensor>> gradients;  // leaf -> its .grad, which the program may have set since
  for (auto it = log.rbegin(); it != log.rend(); ++it) {
    const OuterEvent& event = plan.events[it->event];
    BumpVersions(event, *it, -1);
    for (size_t i = 0; i < event.leaves.size(); ++i) {
      gradients.emplace_back(LeafOf(event, i), LeafOf(event, i).grad());
      if (event.leaf_bumps[i] == 0) continue;
      auto counter = it->gradients_before[i].unsafeGetTensorImpl()->version_counter();
      counter.set_version(counter.current_version() - event.leaf_bumps[i]);
    }
  }
  const Env outside = Env::Current();
  const at::Tensor generator_now = CpuGeneratorState();
  {
    HandlerDepth depth;
    const c10::InferenceMode normal_mode(false);  // the divergence may have been found inside an inference block
    CleanDispatch clean;
    {
      const LeavesAsRecorded as_recorded(*step_);
      for (auto& entry : log) ReplayEvent(entry);
    }
    for (auto& [leaf, gradient] : gradients) leaf.mutable_grad() = gradient;
    HandHistoryOn();
    outside.Restore();
  }
  SetCpuGeneratorState(generator_now);
  if (!outside.autocast_cpu && !outside.autocast_cuda) at::autocast::clear_cache();
}

}  // namespace outrider::seam
