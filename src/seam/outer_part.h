#pragma once
// A launched range of a plan's device ops.

#include <memory>
#include <vector>

#include "seam/outer_step.h"

namespace outrider::seam {

class OuterPart final : public PartJob {
 public:
  // The plan must outlive the job; the lane sees to that.
  const OuterPlan* plan = nullptr;
  std::shared_ptr<OuterTable> table;
  int first_op = 0, end_op = 0;
  int undropped_op = 0;                         // from here to `first_op` nothing has been dropped yet
  DeviceStream stream;
  std::vector<std::pair<int, Operand>> inputs;
  std::vector<std::pair<int, at::Tensor>> draws;
  std::vector<c10::IValue> late;
  std::vector<std::pair<int, RecordPtr>> keep;  // slot -> record that gets its storage
  // Values that earlier parts have handed over and this one reads. One of those that has not run yet, of a plan that needs
  // such a value no more, must not take it for let go.
  std::vector<RecordPtr> holds;
  std::vector<int> preimages;                   // slots to copy before running
  bool commit = false;                          // nothing before the end of this part will be replayed
  bool final = false;                           // the step is over behind it

  void Run() override;

  // --- for the executable forms of the range; graph runner only ---
  void RunOps(int first, int end);
  void SetSlot(int slot, const c10::Storage& storage);
  // Slots that outlive their last device op, besides those in `keep`.
  void Retain(const std::vector<char>& slots);
  const std::vector<char>& Kept() const { return kept_; }
  int CurrentOp() const { return current_op_; }

 private:
  void Start();
  void TakeInputs();
  void SaveForUndo();
  void HandOver();
  void Allocate(const DeviceOp& op);
  void RunOp(const DeviceOp& op);
  c10::IValue ArgumentOf(const Arg& arg);
  const at::Tensor& VariableAt(int id);
  void Put(const Arg& output, const at::Tensor& tensor, const DeviceOp& op);
  void Drop(const DeviceOp& op);
  void NoteHolders();

  std::vector<char> kept_;               // per slot: outlives its last device op ...
  std::vector<StorageRecord*> holder_;   // ... unless this record is found to be held by nobody else
  size_t next_draw_ = 0;
  int current_op_ = 0;
};

}  // namespace outrider::seam
