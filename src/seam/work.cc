#include "seam/work.h"

#include <ATen/core/List.h>

namespace outrider::seam {
namespace {

at::Tensor TensorOf(const Operand& operand, const Geometry& geometry) {
  if (operand.tensor.defined()) return operand.tensor;
  if (operand.record == nullptr) return {};
  TORCH_CHECK(operand.record->real, "outrider: an operand has no value (an earlier operator of the step failed)");
  return AliasTensor(operand.record->real, geometry);
}

void CheckGeometry(const at::Tensor& tensor, const OutputSpec& expected, const OpInfo& op) {
  TORCH_CHECK(expected.geometry.Matches(*tensor.unsafeGetTensorImpl()), "outrider: operator ", op.name, " gave ",
              Geometry::Of(*tensor.unsafeGetTensorImpl()).Text(), " where ", expected.geometry.Text(), " was recorded");
}

void StoreOutput(Work& work, size_t index, const at::Tensor& tensor, const OutputSpec& spec) {
  auto& record = work.outputs[index];
  if (!spec.geometry.defined || spec.same_as_input >= 0) return;
  TORCH_CHECK(tensor.defined(), "outrider: operator ", work.op->name, " gave no tensor where ", spec.geometry.Text(), " was recorded");
  CheckGeometry(tensor, spec, *work.op);
  if (record != nullptr) record->real = tensor.unsafeGetTensorImpl()->unsafe_storage();
}

}  // namespace

void StoreOutputs(Work& work, const Stack& stack) {
  size_t index = 0;
  const size_t first = stack.size() - work.shapes->returns.size();
  for (size_t r = 0; r < work.shapes->returns.size(); ++r) {
    const auto& result = work.shapes->returns[r];
    const auto& value = stack[first + r];
    if (result.kind == ReturnSpec::Kind::kTensor) {
      StoreOutput(work, index++, value.toTensor(), result.outputs[0]);
    } else if (result.kind == ReturnSpec::Kind::kTensorList) {
      const auto list = value.toListRef();
      TORCH_CHECK(list.size() == result.outputs.size(), "outrider: operator ", work.op->name, " gave ", list.size(),
                  " tensors where ", result.outputs.size(), " were recorded");
      for (size_t j = 0; j < list.size(); ++j) StoreOutput(work, index++, list[j].toTensor(), result.outputs[j]);
    }
  }
}

void Work::Clear() {
  op = nullptr;
  shapes = nullptr;
  args.clear();
  tensor_counts.clear();
  inputs.clear();
  outputs.clear();
  part.reset();
  thread_state.reset();
}

void PushArguments(const Work& work, Stack& stack) {
  size_t slot = 0;
  const auto& geometries = work.shapes->inputs;
  for (size_t i = 0; i < work.op->args.size(); ++i) {
    const int count = work.tensor_counts[i];
    if (count < 0) {
      stack.push_back(work.args[i]);
      continue;
    }
    switch (work.op->args[i].kind) {
      case ArgKind::kTensorList: {
        c10::List<at::Tensor> list;
        list.reserve(count);
        for (int j = 0; j < count; ++j, ++slot) list.push_back(TensorOf(work.inputs[slot], geometries[slot]));
        stack.emplace_back(std::move(list));
        break;
      }
      case ArgKind::kOptionalTensorList: {
        c10::List<std::optional<at::Tensor>> list;
        list.reserve(count);
        for (int j = 0; j < count; ++j, ++slot) {
          at::Tensor tensor = TensorOf(work.inputs[slot], geometries[slot]);
          list.push_back(tensor.defined() ? std::optional<at::Tensor>(std::move(tensor)) : std::nullopt);
        }
        stack.emplace_back(std::move(list));
        break;
      }
      default:
        stack.emplace_back(TensorOf(work.inputs[slot], geometries[slot]));
        ++slot;
    }
  }
}

void ExecuteOp(Work& work) {
  Stack stack;
  stack.reserve(work.op->args.size() + 2);
  PushArguments(work, stack);
  work.env.Adopt();
  work.op->handle.callBoxed(&stack);
  StoreOutputs(work, stack);
}

}  // namespace outrider::seam
