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
  std::vector<std::pair<int, Operand>> inputs;
  std::vector<std::pair<int, at::Tensor>> draws;
  std::vector<c10::IValue> late;
  std::vector<std::pair<int, RecordPtr>> keep;  // slot -> record that gets its storage
  std::vector<int> preimages;                   // slots to copy before running
  bool commit = false;                          // nothing before the end of this part will be replayed

  void Run() override;

 private:
  void Start();
  void Allocate(const DeviceOp& op);
  void RunOp(const DeviceOp& op);
  c10::IValue ArgumentOf(const Arg& arg);
  const at::Tensor& VariableAt(int id);
  void Put(const Arg& output, const at::Tensor& tensor, const DeviceOp& op);
  void Drop(const DeviceOp& op);
};

// A copy of all bytes of a storage, in a storage of its own.
c10::Storage CopyStorage(const c10::Storage& storage);
void RestoreStorage(const c10::Storage& target, const c10::Storage& copy);

}  // namespace outrider::seam
