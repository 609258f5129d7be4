#pragma once
// Writes both streams of a step down: host events from above autograd, device ops from below, with their mapping. Holds
// weak references only: strong ones would change what the autograd engine decides.

#include <torch/csrc/autograd/function.h>

#include <memory>
#include <unordered_set>
#include <vector>

#include "seam/inner_lane.h"
#include "seam/outer_trace.h"
#include "seam/torch_adapter.h"

namespace outrider::seam {

class OuterRecorder final : public DeviceOpListener {
 public:
  enum class InputViews { kEvents, kPrepared };  // views of inputs made inside the step: see OuterLane
  // copied_bytes_max: see OuterOptions.
  OuterRecorder(c10::Device compute_device, InputViews input_views, int64_t copied_bytes_max)
      : compute_device_(compute_device), input_views_(input_views), copied_bytes_max_(copied_bytes_max) {}

  // --- host events, in the order of the program ---
  // Notes the arguments; false when the operator is no event (host arithmetic, barriers).
  bool BeginEvent(OpInfo& info, const Stack& stack);
  void EndEvent(const Stack& stack);
  void DropEvent();
  bool IsValue(const at::Tensor& tensor) const { return value_of_.count(tensor.unsafeGetTensorImpl()) != 0; }
  bool IsViewOfHidden(const at::Tensor& tensor) const;
  bool InEvent() const { return event_ >= 0; }
  void NoteFetch();
  // A tensor that is no value changes in place what it looks like.
  void NoteReshaping(const OpInfo& info, const Stack& stack);
  void BeginBackward(const torch::autograd::edge_list& roots, const std::vector<at::Tensor>& gradients);
  // A backward that threw is no event that could be answered without running it.
  void EndBackward(bool completed);
  void Refuse(const std::string& reason) { seam::Refuse(trace_, reason); }

  // --- DeviceOpListener ---
  void BeforeDeviceOp(const Call& call) override;
  void AfterDeviceOp(const Call& call, c10::ArrayRef<c10::IValue> results) override;
  void DropDeviceOp() override;

  std::unique_ptr<OuterTrace> Finish();

 private:
  using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl>;
  struct Seen {
    c10::TensorImpl* tensor;
    int arg, element;
    uint32_t version;
  };

  // `written`: the event writes to it, so it cannot travel as a number.
  Arg HostTensor(const at::Tensor& tensor, bool written);
  Arg HostArg(const c10::IValue& value, bool written);
  int ExternalOf(const at::Tensor& tensor);
  void NoteNode(int value, const at::Tensor& tensor);
  int NewValue(const at::Tensor& tensor);
  int NewOutput(const at::Tensor& tensor);
  ViewOf ViewFacts(const at::Tensor& tensor) const;
  OuterOutput HostOutput(const c10::IValue& value, const OpInfo& info);
  void NoteArguments(const Stack& stack, size_t first);
  void WalkGraph(OuterEvent& event, const torch::autograd::edge_list& roots);
  void NoteLeafGradient(OuterEvent& event, size_t index);
  int ValueOfEdge(const torch::autograd::Edge& edge);

  Arg DeviceTensor(const at::Tensor& tensor, bool result);
  Arg DeviceArg(const c10::IValue& value, bool result);
  int SlotOf(const at::Tensor& tensor, bool result, int64_t& rebase);
  int SnapshotSlot(const at::Tensor& tensor, int64_t& rebase);
  int VariableOf(const at::Tensor& tensor, bool result);
  void SnapshotAlive();

  c10::Device compute_device_;
  InputViews input_views_;
  int64_t copied_bytes_max_;
  OuterTrace trace_;
  std::unordered_map<c10::TensorImpl*, int> value_of_;
  std::unordered_map<c10::TensorImpl*, int> external_of_;
  std::unordered_map<c10::StorageImpl*, int> slot_of_;
  std::unordered_set<c10::StorageImpl*> external_storages_;
  std::unordered_map<c10::StorageImpl*, std::vector<int>> snapshot_externals_;
  std::unordered_map<uint64_t, int> snapshot_slot_of_;  // (external, event)
  std::vector<std::vector<int>> variables_of_slot_;
  std::vector<WeakTensor> value_tensors_;
  std::vector<WeakNode> node_of_value_;
  std::vector<Seen> seen_;
  std::vector<uint32_t> leaf_versions_;
  int event_ = -1;  // the open event
  int64_t copied_bytes_ = 0;  // as a covered step would
  bool op_open_ = false;
};

}  // namespace outrider::seam
