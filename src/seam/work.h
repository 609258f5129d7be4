#pragma once
// What travels from the imperative thread to the graph runner. Work owns no tensor of the program: storages travel as
// records, values that must not change under way travel as private copies.

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/SmallVector.h>

#include <memory>

#include "seam/env.h"
#include "seam/signature.h"
#include "seam/storage_record.h"

namespace outrider::seam {

// One tensor operand: undefined, the bytes behind a record, or a private tensor (wrapped number, cloned feed).
struct Operand {
  RecordPtr record;
  at::Tensor tensor;
  size_t first = 0, count = 0;  // outer lane: these bytes of the record; no count: all of them
};

// A longer job of the outer lane: a range of a plan's device ops.
class PartJob {
 public:
  virtual ~PartJob() = default;
  virtual void Run() = 0;
  int64_t capture_start_ns = 0, capture_ns = 0;  // when the run captured device graphs
};

struct Work {
  const OpInfo* op = nullptr;            // null: only `part` or `thread_state` count
  const ShapeClass* shapes = nullptr;
  c10::SmallVector<c10::IValue, 10> args;      // non-tensor arguments; empty IValue where a tensor goes
  c10::SmallVector<int16_t, 10> tensor_counts;
  c10::SmallVector<Operand, 6> inputs;         // per tensor slot
  c10::SmallVector<RecordPtr, 4> outputs;      // per output value; null: not a new storage
  std::shared_ptr<PartJob> part;
  std::unique_ptr<ThreadState> thread_state;   // adopt before running
  Env env;  // of the program when it called

  void Clear();
};

// Runs one operator on plain tensors and hands the storages of its outputs to their records. Throws what the kernel
// throws. On the graph runner, or on the imperative thread with the queue empty.
void ExecuteOp(Work& work);

// Hands the storages of the results on top of `stack` to the records of `work`.
void StoreOutputs(Work& work, const Stack& stack);

// Builds the boxed arguments of `work` on `stack`.
void PushArguments(const Work& work, Stack& stack);

// The imperative side of the queue, implemented by the graph runner.
class WorkQueue {
 public:
  virtual ~WorkQueue() = default;
  virtual Work& NextSlot() = 0;
  // Publishes the slot; its sequence number.
  virtual uint64_t Submit() = 0;
  virtual uint64_t NextSequence() const = 0;
  virtual bool Idle() const = 0;
  virtual bool Done(uint64_t sequence) const = 0;
  // Waits with the interpreter lock released; rethrows a deferred error.
  virtual void WaitFor(uint64_t sequence) = 0;
  virtual void WaitAll() = 0;
};

}  // namespace outrider::seam
