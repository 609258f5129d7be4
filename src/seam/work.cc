// The graph runner's side: single operators, and parts of the outer lane.

#include "seam/outer_part.h"
#include "seam/work.h"

#include <ATen/core/List.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "seam/generators.h"
#include "seam/plan_graphs.h"
#include "seam/storage_copy.h"

namespace outrider::seam {
namespace {

constexpr int kDeviceStepsMax = 2;  // steps that may be unfinished on the device when the next is launched

}  // namespace

void OuterPart::Start() {
  // Behind the events that two plans share, equal numbers stand for other storages.
  for (size_t i = 0; table->plan != nullptr && i < table->plan->persistent_slots.size(); ++i) {
    table->slots[table->plan->persistent_slots[i]] = c10::Storage();
  }
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

// What the program held at the launch it may have let go of since, the arguments of committed events among it.
void OuterPart::Drop(const DeviceOp& op) {
  for (int slot : op.drop_slots) {
    const bool let_go = holder_[slot] != nullptr && c10::raw::intrusive_ptr::use_count(holder_[slot]) == 1;
    if (kept_[slot] == 0 || let_go) SetSlot(slot, c10::Storage());
  }
}

// The table's and this part's references are the last ones to a record once the program has let go of its value.
void OuterPart::NoteHolders() {
  std::erase_if(table->given, [](const auto& entry) { return entry.second.use_count() == 1; });
  kept_.assign(plan->slots.size(), 0);
  holder_.assign(plan->slots.size(), nullptr);
  const auto note = [this](const auto& entry) {
    kept_[entry.first] = 1;
    holder_[entry.first] = entry.second.get();
  };
  std::for_each(keep.begin(), keep.end(), note);
  std::for_each(table->given.begin(), table->given.end(), note);
}

void OuterPart::SetSlot(int slot, const c10::Storage& storage) {
  table->slots[slot] = storage;
  for (int variable : plan->variables_of_slot[slot]) table->variables[variable] = at::Tensor();
}

void OuterPart::Retain(const std::vector<char>& slots) {
  for (size_t slot = 0; slot < slots.size(); ++slot) {
    if (slots[slot] == 0) continue;
    kept_[slot] = 1;
    holder_[slot] = nullptr;
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

void OuterPart::RunOps(int first, int end) {
  for (int i = first; i < end; ++i) {
    const DeviceOp& op = plan->ops[i];
    current_op_ = i;
    if (op.host_draw) {
      SetSlot(op.draw_slot, draws[next_draw_++].second.unsafeGetTensorImpl()->unsafe_storage());
    } else {
      RunOp(op);
    }
    if (commit) Drop(op);
  }
}

void OuterPart::TakeInputs() {
  for (auto& [slot, operand] : inputs) {
    if (operand.tensor.defined()) SetSlot(slot, operand.tensor.unsafeGetTensorImpl()->unsafe_storage());
    else SetSlot(slot, operand.count == 0 ? operand.record->real : SliceStorage(operand.record, operand.first, operand.count));
    if (operand.record != nullptr) table->held.push_back(operand.record);
  }
}

// What this part changes for good although the step may still be replayed from its beginning.
void OuterPart::SaveForUndo() {
  std::vector<c10::Storage> targets;
  for (int slot : preimages) targets.push_back(table->slots[slot]);
  const auto copies = CopyBytes(targets);
  for (size_t i = 0; i < copies.size(); ++i) table->preimages[preimages[i]] = {targets[i], copies[i]};
  if (commit || stream.device < 0) return;
  auto save = [this](const at::Generator& generator) {
    const auto known = [&](const auto& saved) { return saved.first == generator; };
    auto& offsets = table->generator_offsets;
    if (std::none_of(offsets.begin(), offsets.end(), known)) offsets.emplace_back(generator, GeneratorOffset(generator));
  };
  for (int i = first_op; i < end_op; ++i) {
    if (!plan->ops[i].info->random) continue;
    save(DeviceGenerator(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(stream.device))));
    for (const auto& arg : plan->ops[i].args) {
      if (arg.code == Arg::Code::kConstant && arg.constant.isGenerator()) save(arg.constant.toGenerator());
    }
  }
}

// Gives the program what it still holds, and brings what it got from an earlier part up to date.
void OuterPart::HandOver() {
  for (auto& [slot, record] : table->given) {
    if (plan->written[slot] != 0 && plan->last_use[slot] >= first_op && table->slots[slot]) RefreshBytes(*record, table->slots[slot]);
  }
  for (auto& [slot, record] : keep) {
    const bool lent = plan->graphs != nullptr && plan->graphs->Lend(slot, record, *table);
    if (!lent) record->real = table->slots[slot];
    table->given.emplace_back(slot, record);
  }
}

void OuterPart::Run() {
  AdoptStream(stream);
  holds.clear();  // what came before has run
  if (table->plan != plan) Start();
  NoteHolders();
  if (plan->graphs != nullptr) plan->graphs->Prepare(*this);
  TakeInputs();
  SaveForUndo();
  if (plan->graphs == nullptr || !plan->graphs->Run(*this)) {
    for (int i = undropped_op; commit && i < first_op; ++i) Drop(plan->ops[i]);
    RunOps(first_op, end_op);
    if (table->outcome != nullptr) table->outcome->single_ops += end_op - first_op;
  }
  HandOver();
  if (commit) {
    table->preimages.clear();
    table->generator_offsets.clear();
  }
  if (final) table->Clear();
  if (final && stream.device >= 0) BoundDeviceRunAhead(kDeviceStepsMax);
}

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
