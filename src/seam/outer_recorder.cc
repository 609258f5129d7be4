#include "seam/outer_recorder.h"

#include <ATen/SavedTensorHooks.h>
#include <c10/core/impl/PythonDispatcherTLS.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <unordered_set>

#include "seam/eligibility.h"
#include "seam/lazy_impl.h"
#include "seam/outer_placeholder.h"
#include "seam/storage_record.h"

namespace outrider::seam {

using c10::TensorImpl;
using Code = Arg::Code;

namespace {

// What on this thread looks into operators or their saved tensors, so that an event may not hide them.
std::string Watcher() {
  if (c10::impl::dispatch_mode_enabled() || c10::impl::PythonDispatcherTLS::get_state() != nullptr) {
    return "INNER_FOREIGN: a dispatch mode is active";
  }
  if (!at::SavedTensorDefaultHooks::get_tls_state().stack.empty()) return "INNER_HOOK: saved-tensor hooks are active";
  return "";
}

// The node as it stands: asking for grad_fn would bring a view's history up to date, which is the program's business.
WeakNode RecordedNode(const at::Tensor& tensor) {
  const auto* meta = torch::autograd::impl::get_autograd_meta(tensor);
  return meta == nullptr ? EmptyWeakNode() : WeakNodeOf(meta->grad_fn_);
}

bool HasTensor(const c10::IValue& list) {
  for (const auto& element : list.toListRef()) {
    if (element.isTensor()) return true;
  }
  return list.isTensorList();
}

}  // namespace

int OuterRecorder::ExternalOf(const at::Tensor& tensor) {
  TensorImpl* impl = tensor.unsafeGetTensorImpl();
  if (auto it = external_of_.find(impl); it != external_of_.end()) return it->second;
  External external;
  external.tensor = WeakTensor(tensor.getIntrusivePtr());
  external.identity = impl;
  external.requires_grad = tensor.requires_grad();
  if (!IsPlainStrided(*impl) || !impl->unsafe_storage()) {
    Refuse("INNER_FOREIGN: an input of the step is no dense tensor");
    trace_.externals.push_back(std::move(external));
    return external_of_[impl] = static_cast<int>(trace_.externals.size()) - 1;
  }
  external.geometry = Geometry::Of(*impl);
  external.offset = external.geometry.offset;
  external.storage_nbytes = impl->unsafe_storage().nbytes();
  external.storage = impl->unsafe_storage().unsafeGetStorageImpl();
  external_storages_.insert(external.storage);
  external.storage_guard = impl->unsafe_storage().getWeakStorageImpl();
  if (!tensor.is_leaf()) Refuse("INNER_HISTORY: a tensor from outside the step carries autograd history");
  const bool owned = Graft(*impl);
  const auto* record = owned ? RecordOf(*impl) : nullptr;
  const bool part_of_more = input_views_ == InputViews::kPrepared && EndByte(external.geometry) - external.geometry.offset * impl->itemsize() < external.storage_nbytes;
  external.snapshot = !owned || ((record->synchronous.load() || part_of_more) && !external.requires_grad);
  if (external.snapshot) external.geometry.offset = 0;
  const int id = static_cast<int>(trace_.externals.size());
  if (external.snapshot) snapshot_externals_[external.storage].push_back(id);
  trace_.externals.push_back(std::move(external));
  external_of_[impl] = id;
  return id;
}

Arg OuterRecorder::HostTensor(const at::Tensor& tensor, bool written) {
  Arg arg;
  if (!tensor.defined()) {
    arg.code = Code::kUndefined;
    return arg;
  }
  TensorImpl* impl = tensor.unsafeGetTensorImpl();
  if (auto it = value_of_.find(impl); it != value_of_.end()) {
    arg.code = Code::kValue;
    arg.id = it->second;
  } else if (!written && IsHostNumber(*impl, compute_device_)) {
    arg.code = Code::kNumber;
    arg.constant = CopyNumber(tensor);
  } else {
    arg.code = Code::kExternal;
    arg.id = ExternalOf(tensor);
  }
  return arg;
}

Arg OuterRecorder::HostArg(const c10::IValue& value, bool written) {
  if (value.isTensor()) return HostTensor(value.toTensor(), written);
  Arg arg;
  if (value.isNone()) return arg;
  if (value.isList() && HasTensor(value)) {
    arg.code = Code::kList;
    arg.optional_list = !value.isTensorList();
    for (const auto& element : value.toListRef()) arg.list.push_back(element.isNone() ? Arg{} : HostTensor(element.toTensor(), written));
    return arg;
  }
  arg.code = Code::kConstant;
  arg.constant = value;
  return arg;
}

void OuterRecorder::NoteArguments(const Stack& stack, size_t first) {
  seen_.clear();
  auto note = [&](const at::Tensor& tensor, int arg, int element) {
    if (!tensor.defined()) return;
    const uint32_t version = tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
    seen_.push_back({tensor.unsafeGetTensorImpl(), arg, element, version});
  };
  for (size_t i = first; i < stack.size(); ++i) {
    const int arg = static_cast<int>(i - first);
    if (stack[i].isTensor()) note(stack[i].toTensor(), arg, -1);
    if (!stack[i].isList() || !HasTensor(stack[i])) continue;
    int element = 0;
    for (const auto& entry : stack[i].toListRef()) {
      if (entry.isTensor()) note(entry.toTensor(), arg, element);
      ++element;
    }
  }
}

bool OuterRecorder::BeginEvent(OpInfo& info, const Stack& stack) {
  if (info.foreign) Refuse("INNER_FOREIGN: operator " + info.name + " is not part of torch");
  if (info.changes_metadata) Refuse("INNER_DATA_DEPENDENT: operator " + info.name + " changes the shape of a tensor in place");
  if (const std::string watcher = Watcher(); !watcher.empty()) Refuse(watcher);
  if (!trace_.events.empty() && trace_.events.back().env.inference != c10::InferenceMode::is_enabled()) {
    Refuse("INNER_HISTORY: inference mode in a part of the step");
  }
  if (!trace_.events.empty() && !(trace_.events.back().env.stream == Env::Current().stream)) {
    Refuse("INNER_FOREIGN: the step computes on several streams");
  }
  if (!trace_.events.empty() && trace_.events.back().env.flags != Env::Current().flags) {
    Refuse("INNER_ENV: a numeric flag is set inside the step");  // a replay would run under what it is later
  }
  event_ = static_cast<int>(trace_.events.size());
  OuterEvent event;
  event.info = &info;
  event.env = Env::Current();
  event.first_op = static_cast<int>(trace_.ops.size());
  const size_t first = stack.size() - info.args.size();
  event.args.reserve(info.args.size());
  for (size_t i = first; i < stack.size(); ++i) event.args.push_back(HostArg(stack[i], info.args[i - first].writes));
  NoteArguments(stack, first);
  trace_.events.push_back(std::move(event));
  return true;
}

// The node whose history the value carries; it may outlive the tensor.
void OuterRecorder::NoteNode(int value, const at::Tensor& tensor) {
  node_of_value_.resize(trace_.values.size(), EmptyWeakNode());
  node_of_value_[value] = RecordedNode(tensor);
}

int OuterRecorder::NewValue(const at::Tensor& tensor) {
  TensorImpl* impl = tensor.unsafeGetTensorImpl();
  OuterValue value;
  if (!IsPlainStrided(*impl) || !impl->unsafe_storage()) {
    Refuse("INNER_FOREIGN: an operator returned no dense tensor");
    trace_.values.push_back(std::move(value));
    value_of_[impl] = static_cast<int>(trace_.values.size()) - 1;
    value_tensors_.emplace_back(tensor.getIntrusivePtr());
    node_of_value_.emplace_back(EmptyWeakNode());
    return value_of_[impl];
  }
  value.geometry = Geometry::Of(*impl);
  value.keys = impl->key_set();
  value.requires_grad = tensor.requires_grad();
  value.is_leaf = tensor.is_leaf();
  value.version = tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
  if (tensor.device().type() != compute_device_.type()) Refuse("INNER_FOREIGN: an operator returned a tensor of another device");
  int64_t rebase = 0;
  value.slot = SlotOf(tensor, /*result=*/false, rebase);
  value.geometry.offset -= rebase;
  const int id = static_cast<int>(trace_.values.size());
  trace_.values.push_back(std::move(value));
  value_of_[impl] = id;
  value_tensors_.emplace_back(tensor.getIntrusivePtr());
  NoteNode(id, tensor);
  return id;
}

ViewOf OuterRecorder::ViewFacts(const at::Tensor& tensor) const {
  ViewOf view;
  const TensorImpl* base = BaseOf(*tensor.unsafeGetTensorImpl());
  if (base == tensor.unsafeGetTensorImpl()) return view;
  const auto& meta = *torch::autograd::impl::get_view_autograd_meta(tensor);
  view.any = true;
  view.creation = static_cast<int>(meta.get_creation_meta());
  for (const auto& seen : seen_) {
    if (BaseOf(*seen.tensor) != base) continue;
    view.source = {seen.arg, seen.element};
    return view;
  }
  view.hidden_base = Geometry::Of(*base);
  view.hidden_requires_grad = base->requires_grad();
  return view;
}

// The result of an operator, which may be a view of an argument or share its version counter.
int OuterRecorder::NewOutput(const at::Tensor& tensor) {
  const int id = NewValue(tensor);
  trace_.values[id].view = ViewFacts(tensor);
  for (const auto& seen : seen_) {
    if (!ShareCounter(*seen.tensor, *tensor.unsafeGetTensorImpl())) continue;
    trace_.values[id].counter = {seen.arg, seen.element};
    trace_.values[id].version = 0;
    break;
  }
  return id;
}

bool OuterRecorder::IsViewOfHidden(const at::Tensor& tensor) const {
  const auto found = value_of_.find(tensor.unsafeGetTensorImpl());
  return found != value_of_.end() && trace_.values[found->second].view.OfHidden();
}

OuterOutput OuterRecorder::HostOutput(const c10::IValue& value, const OpInfo& info) {
  OuterOutput output;
  if (value.isTensorList()) {
    output.kind = OuterOutput::Kind::kList;
    for (const auto& element : value.toListRef()) output.values.push_back(NewOutput(element.toTensor()));
    return output;
  }
  if (!value.isTensor()) {
    Refuse("INNER_DATA_DEPENDENT: operator " + info.name + " returns something other than tensors");
    return output;
  }
  const auto& tensor = value.toTensor();
  if (!tensor.defined()) {
    output.kind = OuterOutput::Kind::kUndefined;
    return output;
  }
  for (const auto& seen : seen_) {
    if (seen.tensor != tensor.unsafeGetTensorImpl()) continue;
    output.kind = OuterOutput::Kind::kArgument;
    output.arg = seen.arg;
    output.element = seen.element;
    return output;
  }
  output.value = NewOutput(tensor);
  return output;
}

void OuterRecorder::EndEvent(const Stack& stack) {
  OuterEvent& event = trace_.events[event_];
  const size_t count = event.info->returned_arg.size();
  for (size_t i = stack.size() - count; i < stack.size(); ++i) event.outputs.push_back(HostOutput(stack[i], *event.info));
  // In-place operators on tensors that gained or lost a gradient change their meaning; keep them out.
  std::vector<const TensorImpl*> bumped;
  for (const auto& seen : seen_) {
    if (seen.tensor->is_inference()) continue;
    const auto version = static_cast<uint32_t>(seen.tensor->version_counter().current_version());
    const auto same = [&](const TensorImpl* other) { return ShareCounter(*seen.tensor, *other); };
    if (version != seen.version && std::none_of(bumped.begin(), bumped.end(), same)) {
      bumped.push_back(seen.tensor);
      event.bumps.push_back({{seen.arg, seen.element}, version - seen.version});
    }
    auto it = value_of_.find(seen.tensor);
    if (it == value_of_.end()) continue;
    NoteNode(it->second, at::Tensor(c10::intrusive_ptr<TensorImpl, c10::UndefinedTensorImpl>::reclaim_copy(seen.tensor)));
    if (trace_.values[it->second].requires_grad != seen.tensor->requires_grad()) {
      Refuse("INNER_HISTORY: operator " + event.info->name + " changes requires_grad in place");
    }
  }
  event.end_op = static_cast<int>(trace_.ops.size());
  event_ = -1;
}

void OuterRecorder::DropEvent() {
  event_ = -1;
  op_open_ = false;
  Refuse("INNER_UNSTABLE: an operator raised");
}

// No event: the next use of an input would be of another tensor.
void OuterRecorder::NoteReshaping(const OpInfo& info, const Stack& stack) {
  for (size_t i = stack.size() - info.args.size(); i < stack.size(); ++i) {
    if (!stack[i].isTensor() || external_of_.count(stack[i].toTensor().unsafeGetTensorImpl()) == 0) continue;
    Refuse("INNER_DATA_DEPENDENT: operator " + info.name + " changes the shape of an input in place that has been used");
  }
}

void OuterRecorder::NoteFetch() {
  SnapshotAlive();
  trace_.fetch_events.push_back(static_cast<int>(trace_.events.size()));
}

int OuterRecorder::ValueOfEdge(const torch::autograd::Edge& edge) {
  for (size_t i = 0; i < value_tensors_.size(); ++i) {
    if (!trace_.values[i].requires_grad) continue;
    auto locked = value_tensors_[i].lock();
    if (!locked) continue;
    const at::Tensor tensor(std::move(locked));
    if (tensor.grad_fn().get() == edge.function.get() && tensor.output_nr() == edge.input_nr) return static_cast<int>(i);
  }
  return -1;
}

void OuterRecorder::BeginBackward(const torch::autograd::edge_list& roots, const std::vector<at::Tensor>& gradients) {
  event_ = static_cast<int>(trace_.events.size());
  OuterEvent event;
  event.backward = true;
  event.env = Env::Current();
  event.first_op = static_cast<int>(trace_.ops.size());
  for (const auto& root : roots) {
    Arg arg;
    arg.code = Code::kValue;
    arg.id = ValueOfEdge(root);
    if (arg.id < 0) {
      Refuse("INNER_HISTORY: backward starts at a tensor that is no result of this step");
    } else {
      trace_.values[arg.id].root = trace_.roots++;
    }
    event.args.push_back(std::move(arg));
  }
  for (const auto& gradient : gradients) event.args.push_back(HostTensor(gradient, /*written=*/false));
  if (trace_.refusal.empty()) WalkGraph(event, roots);
  trace_.events.push_back(std::move(event));
}

// Collects the leaves and marks the values whose nodes this backward consumes.
void OuterRecorder::WalkGraph(OuterEvent& event, const torch::autograd::edge_list& roots) {
  const GraphFacts facts = InspectGraph(roots);
  if (!facts.refusal.empty()) Refuse(facts.refusal);
  leaf_versions_.clear();
  for (const auto& leaf : facts.leaves) {
    event.leaves.push_back(ExternalOf(leaf));
    event.leaf_grads.push_back(HostTensor(leaf.grad(), /*written=*/true));
    leaf_versions_.push_back(leaf.grad().defined() ? static_cast<uint32_t>(leaf.grad()._version()) : 0);
  }
  const std::unordered_set<const torch::autograd::Node*> visited(facts.nodes.begin(), facts.nodes.end());
  for (size_t i = 0; i < node_of_value_.size(); ++i) {
    const auto node = node_of_value_[i].lock();
    if (node && visited.count(node.get()) != 0) trace_.values[i].consumed_by = event_;
  }
}

void OuterRecorder::NoteLeafGradient(OuterEvent& event, size_t index) {
  auto locked = trace_.externals[event.leaves[index]].tensor.lock();
  const at::Tensor leaf(std::move(locked));
  event.leaf_values.push_back(-1);
  event.leaf_bumps.push_back(0);
  if (!leaf.defined() || !leaf.grad().defined()) {
    Refuse("INNER_GRAD_STATE: a leaf got no gradient");
    return;
  }
  const at::Tensor gradient = leaf.grad();
  const Arg& before = event.leaf_grads[index];
  if (before.code == Code::kUndefined) {
    event.leaf_values.back() = NewValue(gradient);
    return;
  }
  const Arg now = HostTensor(gradient, /*written=*/true);
  if (now.code != before.code || now.id != before.id) Refuse("INNER_GRAD_STATE: backward replaced a gradient that existed");
  event.leaf_bumps.back() = static_cast<uint32_t>(gradient._version()) - leaf_versions_[index];
}

void OuterRecorder::EndBackward(bool completed) {
  OuterEvent& event = trace_.events[event_];
  if (!completed) Refuse("INNER_UNSTABLE: a backward raised");
  for (size_t i = 0; i < event.leaves.size(); ++i) NoteLeafGradient(event, i);
  event.end_op = static_cast<int>(trace_.ops.size());
  event_ = -1;
}

void OuterRecorder::SnapshotAlive() {
  trace_.alive.resize(trace_.values.size(), 0);
  for (size_t i = 0; i < value_tensors_.size(); ++i) {
    if (!value_tensors_[i].expired()) trace_.alive[i] = 1;
  }
}

std::unique_ptr<OuterTrace> OuterRecorder::Finish() {
  SnapshotAlive();
  for (size_t i = 0; i < trace_.values.size(); ++i) {
    if (NeedsHistory(trace_.values[i]) && trace_.values[i].consumed_by < 0 && !value_tensors_[i].expired()) {
      Refuse("INNER_HISTORY: a tensor keeps its autograd history beyond the step");
    }
  }
  return std::make_unique<OuterTrace>(std::move(trace_));
}

}  // namespace outrider::seam
