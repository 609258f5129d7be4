#include "seam/inner_lane.h"

#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>

#include "seam/backend.h"
#include "seam/gil.h"
#include "seam/lazy_impl.h"
#include "seam/settle.h"
#include "seam/shape_inference.h"

namespace outrider::seam {
namespace {

using c10::TensorImpl;

// A shared storage that is only read enters as a copy up to this size; larger ones make the operator synchronous.
constexpr size_t kCopyMaxBytes = 1 << 20;
// The same of memory that is not torch's own, where the alternative is to wait for all that went before.
constexpr size_t kForeignCopyMaxBytes = 64 << 20;

size_t BytesOf(const TensorImpl& tensor) { return static_cast<size_t>(tensor.numel()) * tensor.itemsize(); }

TensorImpl* Defined(const at::Tensor& tensor) { return tensor.defined() ? tensor.unsafeGetTensorImpl() : nullptr; }

bool IsOn(const TensorImpl& tensor, c10::Device device) {
  return tensor.device().type() == device.type() && (device.is_cpu() || tensor.device().index() == device.index());
}

bool IsHostScalar(const TensorImpl& tensor) {
  return tensor.dim() == 0 && KindOf(tensor) == ImplKind::kPlain && tensor.device().is_cpu();
}

// Every result is a view of one of the sources; false without sources.
bool AllAlias(c10::ArrayRef<c10::IValue> results, c10::ArrayRef<const c10::StorageImpl*> sources) {
  if (sources.empty()) return false;
  auto aliases = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return false;
    const auto* storage = tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
    return storage != nullptr && std::find(sources.begin(), sources.end(), storage) != sources.end();
  };
  for (const auto& result : results) {
    if (result.isTensor() && aliases(result.toTensor())) continue;
    if (!result.isTensorList()) return false;
    for (const auto& element : result.toListRef()) {
      if (!aliases(element.toTensor())) return false;
    }
  }
  return true;
}

}  // namespace

InnerLane::InnerLane(WorkQueue& queue, StepStats& stats) : queue_(queue), stats_(stats), paths_(stats) {}

void InnerLane::SetComputeDevice(c10::Device device) {
  compute_device_ = device;
  SetStreamsMatter(!device.is_cpu());
}

void InnerLane::BeginStep(uint64_t step) {
  step_ = step;
  op_index_ = 0;
  record_rest_ = false;
  mode_ = Mode::kActive;
  paths_.BeginStep(step);
}

void InnerLane::Resume() {
  mode_ = Mode::kActive;
  paths_.PauseGrowth();
}

void InnerLane::EndStep() {
  if (mode_ == Mode::kActive) paths_.EndStep();
  mode_ = Mode::kPassThrough;
  force_at_ = -1;
}

void InnerLane::Collect(OpInfo& info, Stack* stack, Call& call) {
  call.info = &info;
  call.args = stack->data() + (stack->size() - info.args.size());
  for (size_t i = 0; i < info.args.size(); ++i) {
    const auto& value = call.args[i];
    const ArgSpec spec = info.args[i];
    int16_t count = -1;
    auto add = [&](TensorImpl* tensor) {
      if (tensor != nullptr && tensor->is_cuda()) seen_device_ = tensor->device();
      call.tensors.push_back(tensor);
      call.writes.push_back(spec.writes);
    };
    switch (spec.kind) {
      case ArgKind::kTensor:
        if (!value.isTensor()) break;
        count = 1;
        add(Defined(value.toTensor()));
        break;
      case ArgKind::kTensorList:
      case ArgKind::kOptionalTensorList:
        if (!value.isList()) break;
        count = 0;
        for (const auto& element : value.toListRef()) {
          add(element.isTensor() ? Defined(element.toTensor()) : nullptr);
          ++count;
        }
        break;
      default: break;
    }
    call.tensor_counts.push_back(count);
  }
}

// The operator hands its result to another device, or writes to one.
bool InnerLane::LeavesDevice(const Call& call) const {
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    if (call.tensors[i] != nullptr && call.writes[i] && !IsOn(*call.tensors[i], compute_device_)) return true;
  }
  for (size_t i = 0; i < call.info->args.size(); ++i) {
    if (call.tensor_counts[i] < 0 && call.args[i].isDevice() && call.args[i].toDevice().type() != compute_device_.type()) return true;
  }
  return false;
}

InnerLane::Route InnerLane::Classify(Flow& flow) {
  const Call& call = flow.call;
  const OpInfo& info = *call.info;
  const bool on_cpu = compute_device_.is_cpu();
  bool any = false, device_work = false, supported = true, host_data = false;
  for (const auto* tensor : call.tensors) {
    if (tensor == nullptr) continue;
    any = true;
    const bool here = IsOn(*tensor, compute_device_);
    if (here && !(on_cpu && IsHostScalar(*tensor))) device_work = true;
    supported &= KindOf(*tensor) != ImplKind::kOther && IsPlainStrided(*tensor);
    // The one other device that may take part is a CPU scalar, by value.
    if (!here && !IsHostScalar(*tensor)) {
      supported = false;
      host_data |= tensor->device().is_cpu();
    }
  }
  if (!any || !device_work || info.profiler) return Route::kHost;
  if (c10::impl::dispatch_mode_enabled()) return Route::kInline;  // the program watches operators on this thread
  if (info.metadata_only || info.changes_metadata) return info.metadata_only ? Route::kHost : Route::kInline;
  if (on_cpu && info.Draws(call.args)) return Route::kHost;
  if (LeavesDevice(call) || (!on_cpu && host_data)) return Route::kTransfer;
  if (!supported || info.MustRunInline() || MayResize(call)) return Route::kInline;
  return PrepareExternals(flow) ? Route::kDefer : Route::kInline;
}

// Gives every external storage a record, or decides that the tensor enters as a private copy.
bool InnerLane::PrepareExternals(Flow& flow) {
  Call& call = flow.call;
  flow.clone.assign(call.tensors.size(), false);
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    TensorImpl* tensor = call.tensors[i];
    if (tensor == nullptr || tensor->is_wrapped_number()) continue;
    if (IsHostScalar(*tensor) && !call.writes[i]) {
      if (call.info->may_alias) return false;
      flow.clone[i] = true;
      continue;
    }
    const bool had_record = RecordOf(*tensor) != nullptr;
    if (!Graft(*tensor)) {
      if (call.writes[i] || call.info->may_alias || BytesOf(*tensor) > kForeignCopyMaxBytes) return false;
      flow.clone[i] = true;
      ++stats_.feeds;
      continue;
    }
    StorageRecord& record = *RecordOf(*tensor);
    if (!had_record) {
      record.created_step = step_;
      ++stats_.feeds;
    }
    if (record.writer_step != step_ && record.first_external_step == 0) record.first_external_step = step_;
    RelaxEscape(tensor->unsafe_storage(), record);
    if (!record.synchronous.load(std::memory_order_relaxed)) continue;
    if (!call.writes[i] && !call.info->may_alias && BytesOf(*tensor) <= kCopyMaxBytes) {
      flow.clone[i] = true;
    } else {
      flow.synchronous = true;
    }
  }
  return true;
}

bool InnerLane::IsView(const Flow& flow) const {
  if (flow.call.info->writes_any) return false;
  for (const auto& result : flow.shapes->returns) {
    for (const auto& output : result.outputs) {
      if (output.alias_input < 0 || flow.clone[output.alias_input]) return false;
    }
  }
  return flow.shapes->output_count > 0;
}

// Only as_strided can reach beyond its base; shape classes know nothing of storage sizes.
bool InnerLane::ViewsFit(const Flow& flow) {
  for (const auto& result : flow.shapes->returns) {
    for (const auto& output : result.outputs) {
      if (output.alias_input < 0) continue;
      if (EndByte(output.geometry) > flow.call.tensors[output.alias_input]->unsafe_storage().nbytes()) return false;
    }
  }
  return true;
}

bool InnerLane::TakesApart(const c10::OperatorHandle& op) const {
  return mode_ == Mode::kActive && c10::InferenceMode::is_enabled() && InfoOf(op).composite;
}

bool InnerLane::DebugFlushDue() {
  bool due = options_.flush_every_op;
  if (options_.flush_random_one_in != 0) {
    random_state_ = random_state_ * 6364136223846793005ULL + options_.flush_random_seed;
    due |= (random_state_ >> 33) % options_.flush_random_one_in == 0;
  }
  if (due) stats_.Flush(FlushReason::kDebug);
  return due;
}

void InnerLane::OnOp(const c10::OperatorHandle& op, c10::DispatchKeySet next, Stack* stack) {
  Flow flow;
  OpInfo& info = InfoOf(op);
  Collect(info, stack, flow.call);
  if (mode_ == Mode::kPassThrough) {
    RunInline(flow, Route::kHost, next, stack);
    return;
  }
  const Route route = Classify(flow);
  if (route != Route::kHost && op_index_ == force_at_) {
    stats_.Diverge({DivergenceReason::kForced, op_index_, info.name, info.name, "", UserFrame()});
    record_rest_ = true;
  }
  if (route != Route::kDefer) {
    if (route != Route::kHost) ++op_index_;
    RunInline(flow, route, next, stack);
    return;
  }
  flow.signature = &paths_.Locate(flow.call, Env::Current(), signatures_);
  flow.shapes = flow.signature->FindShapes(flow.call);
  if (flow.shapes == nullptr) {
    const auto verdict = flow.signature->inference_agrees.find(HashLayouts(flow.call));
    const bool trusted = verdict != flow.signature->inference_agrees.end() && verdict->second;
    auto inferred = trusted ? InferShapes(flow.call) : nullptr;
    if (inferred != nullptr) flow.shapes = flow.signature->AddShapes(std::move(inferred), flow.call);
  }
  if (flow.shapes != nullptr && !ViewsFit(flow)) {
    ++op_index_;
    RunInline(flow, Route::kInline, next, stack);  // raises what eager raises
    return;
  }
  if (flow.shapes == nullptr || record_rest_) {
    Record(flow, next, stack);
  } else {
    Defer(flow, stack);
  }
  ++op_index_;
  if (DebugFlushDue()) queue_.WaitAll();
}

void InnerLane::CountInline(const OpInfo& info, Route route) {
  if (mode_ == Mode::kPassThrough || info.profiler) return;
  if (route == Route::kHost) {
    ++stats_.host_ops;
    return;
  }
  if (info.fetch || route == Route::kTransfer) {
    ++stats_.fetches;
    stats_.Flush(FlushReason::kFetch);
    return;  // hands over a value, computes nothing
  }
  if (info.changes_metadata || (info.may_alias && !info.writes_any)) return;  // no device work
  ++stats_.inline_ops[info.name];
  stats_.Flush(info.foreign ? FlushReason::kForeignOp : FlushReason::kDataDependent);
}

// The allocator knows a storage with a record by its original owner only.
void InnerLane::KeepForStream(const Call& call) {
  if (call.tensors.empty() || call.tensors[0] == nullptr) return;
  SettleTensor(*call.tensors[0]);
  const StorageRecord* record = RecordOf(*call.tensors[0]);
  if (record == nullptr) return;
  RecordStream(record->is_token ? record->real.data_ptr() : record->original, call.args[1].toStream());
}

void InnerLane::RunInline(Flow& flow, Route route, c10::DispatchKeySet next, Stack* stack) {
  const Call& call = flow.call;
  HandlerDepth depth;
  if (call.info->reshapes) {
    const LooksAtMetadataOnly no_waiting;
    call.info->handle.redispatchBoxed(next, stack);
    return;
  }
  // Between the operators of a covered step: a view of an input has the gate, whoever reads it waits.
  const bool only_looks = call.info->view && mode_ == Mode::kPassThrough && CurrentGraftMode() == GraftMode::kGrafted;
  std::optional<LooksAtMetadataOnly> no_waiting;
  if (only_looks) no_waiting.emplace();
  CountInline(*call.info, route);
  if (call.info->foreign && !call.info->profiler) queue_.WaitAll();
  if (call.info->keeps_for_stream) KeepForStream(call);
  if (call.info->random && !compute_device_.is_cpu()) queue_.WaitAll();
  if (!call.info->metadata_only && !only_looks) {
    for (size_t i = 0; i < call.tensors.size(); ++i) {
      if (call.tensors[i] == nullptr) continue;
      if (call.info->fetch) paths_.MarkFetched(*call.tensors[i]);
      SettleTensor(*call.tensors[i]);
    }
  }
  const bool seen = listener_ != nullptr && mode_ == Mode::kActive;
  c10::SmallVector<const c10::StorageImpl*, 4> sources;
  if (seen && call.info->may_alias && !call.info->writes_any) {
    for (const auto* tensor : call.tensors) sources.push_back(tensor == nullptr ? nullptr : tensor->unsafe_storage().unsafeGetStorageImpl());
  }
  if (seen) listener_->BeforeDeviceOp(call);
  call.info->handle.redispatchBoxed(next, stack);
  const size_t count = call.info->returned_arg.size();
  const c10::ArrayRef<c10::IValue> results(stack->data() + stack->size() - count, count);
  for (const auto& result : results) {
    // A new alias of a storage with a record needs the gate as well.
    auto graft = [](const at::Tensor& tensor) {
      if (tensor.defined() && KindOf(*tensor.unsafeGetTensorImpl()) == ImplKind::kPlain && tensor.unsafeGetTensorImpl()->unsafe_storage() &&
          RecordOf(*tensor.unsafeGetTensorImpl()) != nullptr) {
        GateAlias(*tensor.unsafeGetTensorImpl());
      }
    };
    if (result.isTensor()) graft(result.toTensor());
    if (result.isTensorList()) {
      for (const auto& element : result.toListRef()) graft(element.toTensor());
    }
  }
  if (seen) AllAlias(results, sources) ? listener_->DropDeviceOp() : listener_->AfterDeviceOp(call, results);
}

}  // namespace outrider::seam
