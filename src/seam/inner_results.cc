// InnerLane, second half: operands on the way to the graph runner, placeholders on the way to the program.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/ops/zeros.h>

#include <cstring>

#include "seam/generators.h"
#include "seam/inner_lane.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/settle.h"
#include "seam/shape_inference.h"
#include "seam/storage_copy.h"

namespace outrider::seam {
namespace {

using c10::TensorImpl;

at::Tensor Share(TensorImpl* impl) { return at::Tensor(c10::intrusive_ptr<TensorImpl, c10::UndefinedTensorImpl>::reclaim_copy(impl)); }

// A tensor of its own, as eager returns one; the lanes do not see it being made.
at::Tensor HostZero() {
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return at::zeros({}, at::kLong);
}

bool SameBytes(const at::Tensor& a, const at::Tensor& b) { return a.nbytes() == b.nbytes() && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0; }

}  // namespace

at::Tensor InnerLane::OperandCopy(const TensorImpl& tensor) {
  if (options_.feed_clone) return PrivateCopy(tensor);
  SettleTensor(tensor);
  const auto* record = RecordOf(tensor);
  return AliasTensor(record != nullptr ? record->real : tensor.unsafe_storage(), tensor);
}

void InnerLane::PackOperands(Flow& flow, Work& work, uint64_t sequence) {
  const Call& call = flow.call;
  work.Clear();
  work.op = call.info;
  work.shapes = flow.shapes;
  work.env = Env::Current();
  work.tensor_counts.assign(call.tensor_counts.begin(), call.tensor_counts.end());
  work.args.resize(call.info->args.size());
  for (size_t i = 0; i < call.info->args.size(); ++i) {
    if (call.tensor_counts[i] < 0) work.args[i] = call.args[i];
  }
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    Operand& operand = work.inputs.emplace_back();
    TensorImpl* tensor = call.tensors[i];
    if (tensor == nullptr) continue;
    if (tensor->is_wrapped_number()) {
      operand.tensor = Share(tensor);
    } else if (flow.clone[i]) {
      operand.tensor = OperandCopy(*tensor);
    } else {
      StorageRecord* record = RecordOf(*tensor);
      operand.record = RecordPtr::reclaim_copy(record);
      if (sequence == 0) continue;
      record->last_use.store(sequence, std::memory_order_release);
    }
  }
}

void InnerLane::BumpVersions(const Flow& flow) {
  if (!options_.version_replay) return;
  for (auto [slot, bumps] : flow.shapes->version_bumps) {
    TensorImpl* tensor = flow.call.tensors[slot];
    for (int i = 0; i < bumps && !tensor->is_inference(); ++i) tensor->bump_version();
  }
}

void InnerLane::StampWrites(Flow& flow) {
  uint32_t output = static_cast<uint32_t>(flow.shapes->output_count);
  for (size_t i = 0; i < flow.call.tensors.size(); ++i) {
    if (!flow.call.writes[i] || flow.call.tensors[i] == nullptr) continue;
    if (StorageRecord* record = RecordOf(*flow.call.tensors[i])) {
      record->writer_step = step_;
      record->writer = flow.node;
      record->writer_output = output;
    }
    ++output;
  }
}

at::Tensor InnerLane::MakePlaceholder(Flow& flow, const OutputSpec& spec, c10::ArrayRef<at::Tensor> earlier, RecordPtr& record,
                                      uint64_t sequence) {
  if (!spec.geometry.defined) return {};
  if (spec.same_as_input >= 0) return Share(flow.call.tensors[spec.same_as_input]);
  const auto dtype = c10::scalarTypeToTypeMeta(spec.geometry.dtype);
  const TensorImpl* base = spec.alias_input >= 0    ? flow.call.tensors[spec.alias_input]
                           : spec.alias_output >= 0 ? earlier[spec.alias_output].unsafeGetTensorImpl()
                                                    : nullptr;
  c10::intrusive_ptr<LazyImpl> impl;
  if (base != nullptr) {
    impl = c10::make_intrusive<LazyImpl>(TensorImpl::VIEW, c10::Storage(base->unsafe_storage()), base->key_set(), dtype);
  } else {
    StorageRecord* fresh = nullptr;
    c10::Storage token = MakeToken(spec.nbytes, compute_device_, &fresh);
    fresh->created_step = fresh->writer_step = step_;
    fresh->writer = flow.node;
    fresh->last_use.store(sequence, std::memory_order_relaxed);
    record = RecordPtr::reclaim_copy(fresh);
    const auto key = compute_device_.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
    impl = c10::make_intrusive<LazyImpl>(std::move(token), c10::DispatchKeySet(key), dtype);
  }
  impl->set_sizes_and_strides(spec.geometry.sizes, spec.geometry.strides, spec.geometry.offset);
  if (spec.geometry.wrapped_number) impl->set_wrapped_number(true);
  return at::Tensor(std::move(impl));
}

void InnerLane::ReturnResults(Flow& flow, Stack* stack, c10::SmallVectorImpl<RecordPtr>& records, uint64_t sequence) {
  const OpInfo& info = *flow.call.info;
  c10::SmallVector<c10::IValue, 4> results;
  c10::SmallVector<at::Tensor, 4> outputs;
  for (size_t r = 0; r < flow.shapes->returns.size(); ++r) {
    const ReturnSpec& spec = flow.shapes->returns[r];
    if (spec.kind == ReturnSpec::Kind::kWrittenArgument) {
      results.push_back(flow.call.args[info.returned_arg[r]]);
      continue;
    }
    if (spec.kind == ReturnSpec::Kind::kNumber) {
      results.emplace_back(spec.number);
      continue;
    }
    if (spec.kind == ReturnSpec::Kind::kIdlePosition) {
      results.emplace_back(HostZero());
      continue;
    }
    c10::List<at::Tensor> list;
    for (const OutputSpec& output : spec.outputs) {
      auto& record = records.emplace_back();
      outputs.push_back(MakePlaceholder(flow, output, outputs, record, sequence));
      if (record != nullptr) record->writer_output = static_cast<uint32_t>(records.size() - 1);
      if (spec.kind == ReturnSpec::Kind::kTensorList) list.push_back(outputs.back());
    }
    if (spec.kind == ReturnSpec::Kind::kTensorList) {
      results.emplace_back(std::move(list));
    } else {
      results.emplace_back(outputs.back());
    }
  }
  StampWrites(flow);
  BumpVersions(flow);
  torch::jit::drop(*stack, info.args.size());
  for (auto& result : results) stack->push_back(std::move(result));
}

void InnerLane::Defer(Flow& flow, Stack* stack) {
  const bool view = IsView(flow);
  const size_t returns = flow.shapes->returns.size();
  flow.node = paths_.Advance(flow.call, *flow.signature, flow.shapes->output_count, op_index_);
  if (view) {  // nothing runs: the placeholder is another geometry of the same storage
    ++stats_.views;
    c10::SmallVector<RecordPtr, 4> records;
    ReturnResults(flow, stack, records, 0);
  } else {
    if (listener_ != nullptr) listener_->BeforeDeviceOp(flow.call);
    ++stats_.covered_ops;
    Work& work = queue_.NextSlot();
    const uint64_t sequence = queue_.NextSequence();
    PackOperands(flow, work, sequence);
    ReturnResults(flow, stack, work.outputs, sequence);
    queue_.Submit();
    if (flow.synchronous) {
      stats_.Flush(FlushReason::kEscaped);
      queue_.WaitFor(sequence);
    }
    if (listener_ != nullptr) listener_->AfterDeviceOp(flow.call, c10::ArrayRef<c10::IValue>(stack->data() + stack->size() - returns, returns));
  }
}

void InnerLane::LearnShapes(Flow& flow, c10::ArrayRef<at::Tensor> operands, std::unique_ptr<ShapeClass> shapes) {
  for (size_t i = 0; i < operands.size(); ++i) {
    if (!flow.call.writes[i] || !operands[i].defined() || operands[i].is_inference()) continue;
    if (const auto bumps = operands[i]._version(); bumps != 0) shapes->version_bumps.emplace_back(static_cast<int>(i), bumps);
  }
  Signature& signature = *flow.signature;
  if (const uint64_t layouts = HashLayouts(flow.call); !signature.inference_agrees.contains(layouts)) {
    const auto inferred = InferShapes(flow.call);
    const bool agrees = inferred != nullptr && SamePrediction(*inferred, *shapes) && shapes->version_bumps.empty();
    signature.inference_agrees.emplace(layouts, agrees);
  }
  flow.shapes = signature.AddShapes(std::move(shapes), flow.call);
}

// The results are no plain dense tensors of the compute device. True when they were put on the stack.
bool InnerLane::RecordOdd(Flow& flow, c10::DispatchKeySet next, Stack* stack, Stack& results) {
  OpInfo& info = *flow.call.info;
  info.pinned_inline = true;
  if (!info.writes_any && !info.random) {
    // Pure: run it again on the program's own tensors, so that aliases are aliases of those.
    RunInline(flow, Route::kInline, next, stack);
    return true;
  }
  for (size_t r = 0; r < results.size(); ++r) {
    if (info.returned_arg[r] >= 0) results[r] = flow.call.args[info.returned_arg[r]];
  }
  torch::jit::drop(*stack, info.args.size());
  for (auto& result : results) stack->push_back(std::move(result));
  return true;
}

// The recorded run itself, on `recorded_work_`. An operator that draws numbers although its arguments say otherwise is
// random from then on.
void InnerLane::RunRecorded(Flow& flow, c10::DispatchKeySet next, Stack& results) {
  OpInfo& info = *flow.call.info;
  const bool silent = info.random && compute_device_.is_cpu();
  const at::Tensor before = silent ? CpuGeneratorState() : at::Tensor();
  HandlerDepth depth;
  PushArguments(recorded_work_, results);
  try {
    info.handle.redispatchBoxed(next, &results);
  } catch (...) {
    if (listener_ != nullptr) listener_->DropDeviceOp();
    recorded_work_.Clear();
    throw;
  }
  if (silent) info.draws_regardless |= !SameBytes(before, CpuGeneratorState());
}

void InnerLane::Record(Flow& flow, c10::DispatchKeySet next, Stack* stack) {
  Work& work = recorded_work_;
  bool waits = false;
  for (const auto* tensor : flow.call.tensors) {
    if (tensor == nullptr) continue;
    const auto* record = RecordOf(*tensor);
    waits |= record != nullptr && !queue_.Done(record->last_use.load(std::memory_order_acquire));
    SettleTensor(*tensor);
  }
  if (waits) stats_.Flush(FlushReason::kRecord);
  ShapeClass unknown;
  unknown.inputs.resize(flow.call.tensors.size());
  PackOperands(flow, work, 0);
  work.shapes = &unknown;
  c10::SmallVector<at::Tensor, 12> operands;
  for (size_t i = 0; i < flow.call.tensors.size(); ++i) {
    Operand& operand = work.inputs[i];
    if (operand.record != nullptr) operand.tensor = AliasTensor(operand.record->real, *flow.call.tensors[i]);
    operands.push_back(operand.tensor);
  }
  if (listener_ != nullptr) listener_->BeforeDeviceOp(flow.call);
  Stack results;
  RunRecorded(flow, next, results);
  auto shapes = std::make_unique<ShapeClass>();
  bool plain = DescribeReturns(flow.call, operands, results, /*meta=*/false, *shapes);
  for (const auto& result : results) {
    if (!result.isTensor() || !result.toTensor().defined()) continue;
    plain &= result.toTensor().device() == compute_device_ || IsIdlePosition(flow.call, result.toTensor());
  }
  for (const auto& result : shapes->returns) {
    for (const auto& output : result.outputs) plain &= output.alias_input < 0 || !flow.clone[output.alias_input];
  }
  if (!plain) {
    if (listener_ != nullptr) listener_->DropDeviceOp();
    RecordOdd(flow, next, stack, results);
    work.Clear();
    return;
  }
  if (flow.shapes == nullptr) LearnShapes(flow, operands, std::move(shapes));
  const bool view = IsView(flow);
  view ? ++stats_.views : ++stats_.recorded_ops;
  flow.node = paths_.Advance(flow.call, *flow.signature, flow.shapes->output_count, op_index_);
  work.shapes = flow.shapes;
  ReturnResults(flow, stack, work.outputs, 0);
  StoreOutputs(work, results);
  work.Clear();
  const size_t returns = flow.shapes->returns.size();
  if (listener_ == nullptr) return;
  view ? listener_->DropDeviceOp() : listener_->AfterDeviceOp(flow.call, c10::ArrayRef<c10::IValue>(stack->data() + stack->size() - returns, returns));
}

}  // namespace outrider::seam
