// OuterRecorder, second half: device ops, and what its trace says of tensors and arguments.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/clone.h>
#include <c10/core/impl/PythonDispatcherTLS.h>
#include <torch/csrc/autograd/graph_task.h>

#include <cstring>

#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/outer_recorder.h"
#include "seam/outer_trace.h"
#include "seam/shape_inference.h"
#include "seam/storage_record.h"

namespace outrider::seam {

using c10::TensorImpl;
using Code = Arg::Code;

// Memory of the program's own (numpy buffers) may change between two events, so each event that reads it has its own slot.
int OuterRecorder::SnapshotSlot(const at::Tensor& tensor, int64_t& rebase) {
  const TensorImpl* impl = tensor.unsafeGetTensorImpl();
  const auto it = snapshot_externals_.find(impl->unsafe_storage().unsafeGetStorageImpl());
  if (it == snapshot_externals_.end()) return -1;
  const size_t item = impl->itemsize();
  const size_t first = static_cast<size_t>(impl->storage_offset()) * item;
  const size_t end = EndByte(Geometry::Of(*impl));
  int external = -1;
  for (int candidate : it->second) {
    const External& known = trace_.externals[candidate];
    const size_t start = static_cast<size_t>(known.offset) * c10::elementSize(known.geometry.dtype);
    if (first < start || end > start + EndByte(known.geometry) || start % item != 0) continue;
    const bool exact = first == start && impl->sizes() == c10::IntArrayRef(known.geometry.sizes);
    if (external < 0 || exact) external = candidate;
  }
  if (external < 0) {
    Refuse("INNER_FOREIGN: a view reaches beyond the input that it was made of");
    external = it->second.front();
  }
  const External& source = trace_.externals[external];
  rebase = source.offset * static_cast<int64_t>(c10::elementSize(source.geometry.dtype)) / static_cast<int64_t>(item);
  const uint64_t key = (static_cast<uint64_t>(external) << 32) | static_cast<uint32_t>(event_);
  if (auto slot = snapshot_slot_of_.find(key); slot != snapshot_slot_of_.end()) return slot->second;
  const StorageRecord* record = RecordOf(*impl);
  if (record == nullptr || record->synchronous.load(std::memory_order_relaxed)) {
    copied_bytes_ += static_cast<int64_t>(EndByte(source.geometry));
    if (copied_bytes_ > copied_bytes_max_) Refuse("INNER_FOREIGN: the step reads too much of memory that others may write to");
  }
  Slot slot;
  slot.external = slot.snapshot = true;
  slot.snapshot_external = external;
  slot.device = tensor.device();
  const int id = static_cast<int>(trace_.slots.size());
  trace_.slots.push_back(std::move(slot));
  variables_of_slot_.emplace_back();
  snapshot_slot_of_[key] = id;
  trace_.events[event_].snapshots.push_back({id, external});
  return id;
}

int OuterRecorder::SlotOf(const at::Tensor& tensor, bool result, int64_t& rebase) {
  const auto& storage = tensor.unsafeGetTensorImpl()->unsafe_storage();
  auto* identity = storage.unsafeGetStorageImpl();
  if (!result && event_ >= 0) {
    if (const int slot = SnapshotSlot(tensor, rebase); slot >= 0) return slot;
  }
  if (auto it = slot_of_.find(identity); it != slot_of_.end()) return it->second;
  Slot slot;
  slot.identity = identity;
  slot.storage = storage.getWeakStorageImpl();
  slot.external = !result;
  slot.nbytes = identity->nbytes();
  slot.device = tensor.device();
  const int id = static_cast<int>(trace_.slots.size());
  trace_.slots.push_back(std::move(slot));
  variables_of_slot_.emplace_back();
  slot_of_[identity] = id;
  return id;
}

int OuterRecorder::VariableOf(const at::Tensor& tensor, bool result) {
  int64_t rebase = 0;
  const int slot = SlotOf(tensor, result, rebase);
  Geometry geometry = Geometry::Of(*tensor.unsafeGetTensorImpl());
  geometry.offset -= rebase;
  for (int variable : variables_of_slot_[slot]) {
    if (trace_.variables[variable].geometry == geometry) return variable;
  }
  const int id = static_cast<int>(trace_.variables.size());
  trace_.variables.push_back({slot, std::move(geometry)});
  variables_of_slot_[slot].push_back(id);
  return id;
}

Arg OuterRecorder::DeviceTensor(const at::Tensor& tensor, bool result) {
  Arg arg;
  if (!tensor.defined()) {
    arg.code = Code::kUndefined;
    return arg;
  }
  const auto& impl = *tensor.unsafeGetTensorImpl();
  if (!IsPlainStrided(impl) || !impl.unsafe_storage()) {
    Refuse("INNER_FOREIGN: a device op works on a tensor that is not dense");
    return arg;
  }
  const auto* identity = impl.unsafe_storage().unsafeGetStorageImpl();
  if (!result && (impl.is_wrapped_number() || (IsHostNumber(impl, compute_device_) && slot_of_.count(const_cast<c10::StorageImpl*>(identity)) == 0))) {
    arg.code = Code::kNumber;
    arg.constant = CopyNumber(tensor);
    return arg;
  }
  arg.code = Code::kVariable;
  arg.id = VariableOf(tensor, result);
  return arg;
}

Arg OuterRecorder::DeviceArg(const c10::IValue& value, bool result) {
  if (value.isTensor()) return DeviceTensor(value.toTensor(), result);
  Arg arg;
  if (value.isNone()) return arg;
  bool tensors = value.isTensorList();
  if (value.isList() && !tensors) {
    for (const auto& element : value.toListRef()) tensors |= element.isTensor();
  }
  if (!tensors) {
    arg.code = Code::kConstant;
    arg.constant = value;
    return arg;
  }
  arg.code = Code::kList;
  arg.optional_list = !value.isTensorList();
  for (const auto& element : value.toListRef()) arg.list.push_back(element.isNone() ? Arg{} : DeviceTensor(element.toTensor(), result));
  return arg;
}

void OuterRecorder::BeforeDeviceOp(const Call& call) {
  op_open_ = false;
  // C++ code of a Python program comes to the engine behind the shims.
  if (event_ < 0 && torch::autograd::get_current_graph_task_id() != -1) Refuse("INNER_GRAPH_API: backward called from C++ code below Python");
  if (event_ < 0 || call.info->profiler) return;  // host code between events: its results enter as feeds
  const OpInfo& info = *call.info;
  if (info.reshapes) return;  // the event's values are described when it is over
  const bool draw = compute_device_.is_cpu() && info.Draws(call.args);
  if (info.fetch || info.data_dependent || info.odd_returns) Refuse("INNER_DATA_DEPENDENT: operator " + info.name + " inside an event");
  if (info.foreign || info.pinned_inline) Refuse("INNER_FOREIGN: operator " + info.name + " cannot be replayed");
  if (info.changes_metadata || MayResize(call)) Refuse("INNER_DATA_DEPENDENT: operator " + info.name + " changes the shape of a tensor in place");
  if (draw && !info.random_fill && !info.random_like && !call.tensors.empty()) Refuse("INNER_DATA_DEPENDENT: operator " + info.name + " draws from values");
  DeviceOp op;
  op.info = call.info;
  op.event = event_;
  op.host_draw = draw;
  op.env = Env::Current();
  const size_t known_slots = trace_.slots.size();
  op.args.reserve(info.args.size());
  for (size_t i = 0; i < info.args.size(); ++i) op.args.push_back(DeviceArg(call.args[i], /*result=*/false));
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    if (!call.writes[i] || call.tensors[i] == nullptr || !IsPlainStrided(*call.tensors[i])) continue;
    auto it = slot_of_.find(call.tensors[i]->unsafe_storage().unsafeGetStorageImpl());
    if (it != slot_of_.end()) op.writes.push_back(it->second);
    else Refuse("INNER_FOREIGN: operator " + info.name + " writes to memory of the program's own");
  }
  for (int slot : op.writes) {
    if (static_cast<size_t>(slot) < known_slots || !info.overwrites || trace_.slots[slot].snapshot) continue;
    if (external_storages_.count(trace_.slots[slot].identity) != 0) continue;
    trace_.slots[slot].external = false;
    trace_.slots[slot].allocate = true;
  }
  if (draw && info.random_fill && !op.writes.empty()) {
    op.draw_slot = op.writes.front();
    if (trace_.slots[op.draw_slot].external) Refuse("INNER_DATA_DEPENDENT: " + info.name + " draws into state that outlives the step");
  }
  trace_.events[event_].host_draw |= draw;
  trace_.ops.push_back(std::move(op));
  op_open_ = true;
}

void OuterRecorder::AfterDeviceOp(const Call&, c10::ArrayRef<c10::IValue> results) {
  if (!op_open_) return;
  op_open_ = false;
  DeviceOp& op = trace_.ops.back();
  for (const auto& result : results) op.outputs.push_back(DeviceArg(result, /*result=*/true));
  if (op.host_draw && op.draw_slot < 0 && !op.outputs.empty() && op.outputs[0].code == Code::kVariable) {
    op.draw_slot = trace_.variables[op.outputs[0].id].slot;
  }
  if (op.host_draw && op.draw_slot < 0) Refuse("INNER_DATA_DEPENDENT: operator " + op.info->name + " draws into memory of the program's own");
}

void OuterRecorder::DropDeviceOp() {
  if (!op_open_) return;
  op_open_ = false;
  trace_.ops.pop_back();
}

void Refuse(OuterTrace& trace, const std::string& reason) {
  if (trace.refusal.empty()) trace.refusal = reason;
}

at::Tensor TensorAt(const Stack& args, Place place) {
  const auto& value = args[place.arg];
  return place.element < 0 ? value.toTensor() : value.toListRef()[place.element].toTensor();
}

// torch tells nobody whether two counters are one; the handle is a single pointer.
bool ShareCounter(const c10::TensorImpl& a, const c10::TensorImpl& b) {
  static_assert(sizeof(c10::VariableVersion) == sizeof(void*));
  if (!a.version_counter().enabled()) return false;
  return std::memcmp(&a.version_counter(), &b.version_counter(), sizeof(void*)) == 0;
}

at::Tensor CopyNumber(const at::Tensor& tensor) {
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::impl::DisablePythonDispatcher no_python;  // a fake tensor's operator may be under way
  at::Tensor copy = at::clone(tensor);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) copy.unsafeGetTensorImpl()->set_wrapped_number(true);
  return copy;
}

bool SameNumber(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.unsafeGetTensorImpl()->is_wrapped_number() == b.unsafeGetTensorImpl()->is_wrapped_number() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.element_size()) == 0;
}

bool IsHostNumber(const c10::TensorImpl& tensor, c10::Device compute_device) {
  if (!tensor.device().is_cpu() || tensor.dim() != 0 || KindOf(tensor) != ImplKind::kPlain) return false;
  return !compute_device.is_cpu() || !tensor.requires_grad();
}

bool SameArg(const Arg& a, const Arg& b) {
  if (a.code != b.code || a.id != b.id || a.list.size() != b.list.size() || a.optional_list != b.optional_list) return false;
  if (a.code == Arg::Code::kConstant) return StructurallyEqual(a.constant, b.constant);
  if (a.code == Arg::Code::kNumber) return SameNumber(a.constant.toTensor(), b.constant.toTensor());
  for (size_t i = 0; i < a.list.size(); ++i) {
    if (!SameArg(a.list[i], b.list[i])) return false;
  }
  return true;
}

}  // namespace outrider::seam
