#include "seam/outer_part.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/ops/empty.h>

#include "seam/keys.h"

namespace outrider::seam {
namespace {

at::Tensor Bytes(const c10::Storage& storage) {
  Geometry geometry;
  geometry.sizes = {static_cast<int64_t>(storage.nbytes())};
  geometry.strides = {1};
  geometry.dtype = c10::ScalarType::Byte;
  geometry.defined = true;
  return AliasTensor(storage, geometry);
}

}  // namespace

c10::Storage CopyStorage(const c10::Storage& storage) {
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  at::Tensor copy = at::empty({static_cast<int64_t>(storage.nbytes())}, at::TensorOptions().dtype(at::kByte).device(storage.device()));
  copy.copy_(Bytes(storage));
  return copy.unsafeGetTensorImpl()->unsafe_storage();
}

void RestoreStorage(const c10::Storage& target, const c10::Storage& copy) {
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Bytes(target).copy_(Bytes(copy));
}

void OuterPart::Start() {
  table->plan = plan;
  table->slots.resize(std::max(table->slots.size(), plan->slots.size()));
  table->variables.resize(std::max(table->variables.size(), plan->variables.size()));
  for (size_t i = 0; i < plan->persistent_records.size(); ++i) table->slots[plan->persistent_slots[i]] = plan->persistent_records[i]->real;
}

const at::Tensor& OuterPart::VariableAt(int id) {
  at::Tensor& cached = table->variables[id];
  if (cached.defined()) return cached;
  const Variable& variable = plan->variables[id];
  TORCH_CHECK(table->slots[variable.slot], "outrider: a device op reads value ", id, " of storage ", variable.slot, " (", variable.geometry.Text(),
              plan->slots[variable.slot].external ? ", external" : "", plan->slots[variable.slot].snapshot ? ", snapshot" : "",
              ", last use ", plan->last_use[variable.slot], ") that has not been produced");
  cached = AliasTensor(table->slots[variable.slot], variable.geometry);
  return cached;
}

c10::IValue OuterPart::ArgumentOf(const Arg& arg) {
  switch (arg.code) {
    case Arg::Code::kUndefined: return at::Tensor();
    case Arg::Code::kVariable: return VariableAt(arg.id);
    case Arg::Code::kConstant:
    case Arg::Code::kNumber: return arg.constant;
    case Arg::Code::kLate: return late[arg.id];
    case Arg::Code::kList: break;
    default: return {};
  }
  if (arg.optional_list) {
    c10::List<std::optional<at::Tensor>> list;
    for (const auto& element : arg.list) {
      const c10::IValue value = ArgumentOf(element);
      list.push_back(value.isTensor() && value.toTensor().defined() ? std::optional<at::Tensor>(value.toTensor()) : std::nullopt);
    }
    return list;
  }
  c10::List<at::Tensor> list;
  list.reserve(arg.list.size());
  for (const auto& element : arg.list) list.push_back(element.code == Arg::Code::kUndefined ? at::Tensor() : ArgumentOf(element).toTensor());
  return list;
}

void OuterPart::Put(const Arg& output, const at::Tensor& tensor, const DeviceOp& op) {
  if (output.code != Arg::Code::kVariable) return;
  const Variable& variable = plan->variables[output.id];
  TORCH_CHECK(variable.geometry.Matches(*tensor.unsafeGetTensorImpl()), "outrider: operator ", op.info->name, " gave ",
              Geometry::Of(*tensor.unsafeGetTensorImpl()).Text(), " where ", variable.geometry.Text(), " was recorded");
  table->slots[variable.slot] = tensor.unsafeGetTensorImpl()->unsafe_storage();
  table->variables[output.id] = tensor;
}

void OuterPart::Drop(const DeviceOp& op) {
  for (int slot : op.drop_slots) {
    bool kept = false;
    for (const auto& [kept_slot, record] : keep) kept |= kept_slot == slot;
    if (!kept) table->slots[slot] = c10::Storage();
  }
  for (int variable : op.drop_variables) {
    if (!table->slots[plan->variables[variable].slot]) table->variables[variable] = at::Tensor();
  }
}

void OuterPart::Allocate(const DeviceOp& op) {
  for (int id : op.writes) {
    const Slot& slot = plan->slots[id];
    if (!slot.allocate || table->slots[id]) continue;
    at::Tensor bytes = at::empty({static_cast<int64_t>(slot.nbytes)}, at::TensorOptions().dtype(at::kByte).device(slot.device));
    table->slots[id] = bytes.unsafeGetTensorImpl()->unsafe_storage();
  }
}

void OuterPart::RunOp(const DeviceOp& op) {
  if (op.info->overwrites) Allocate(op);
  Stack stack;
  stack.reserve(op.args.size() + 2);
  for (const auto& arg : op.args) stack.push_back(ArgumentOf(arg));
  op.env.Adopt();
  op.info->handle.callBoxed(&stack);
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    const Arg& output = op.outputs[i];
    if (output.code == Arg::Code::kVariable) {
      Put(output, stack[i].toTensor(), op);
    } else if (output.code == Arg::Code::kList) {
      const auto list = stack[i].toListRef();
      for (size_t j = 0; j < output.list.size(); ++j) Put(output.list[j], list[j].toTensor(), op);
    }
  }
}

void OuterPart::Run() {
  if (table->plan != plan) Start();
  for (auto& [slot, operand] : inputs) {
    table->slots[slot] = operand.tensor.defined() ? operand.tensor.unsafeGetTensorImpl()->unsafe_storage() : operand.record->real;
    if (operand.record != nullptr) table->held.push_back(operand.record);
  }
  for (int slot : preimages) table->preimages[slot] = {table->slots[slot], CopyStorage(table->slots[slot])};
  size_t draw = 0;
  for (int i = first_op; i < end_op; ++i) {
    const DeviceOp& op = plan->ops[i];
    if (op.host_draw) {
      const at::Tensor& drawn = draws[draw++].second;
      table->slots[op.draw_slot] = drawn.unsafeGetTensorImpl()->unsafe_storage();
      for (size_t v = 0; v < plan->variables.size(); ++v) {
        if (plan->variables[v].slot == op.draw_slot) table->variables[v] = at::Tensor();
      }
    } else {
      RunOp(op);
    }
    if (commit) Drop(op);
  }
  for (auto& [slot, record] : keep) record->real = table->slots[slot];
  if (commit) table->preimages.clear();
}

}  // namespace outrider::seam
