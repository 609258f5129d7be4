#pragma once
// One covered step under way: what has been validated, what has been launched, what may still have to be undone.

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "seam/outer_placeholder.h"
#include "seam/outer_plan.h"
#include "seam/tier_outcome.h"
#include "seam/work.h"

namespace outrider::seam {

// The graph runner's side of a step: storages by slot. Holds nothing that has a PyObject.
struct OuterTable {
  uint64_t step = 0;
  const OuterPlan* plan = nullptr;  // whose persistent storages are in place
  std::vector<c10::Storage> slots;
  std::vector<at::Tensor> variables;
  std::vector<RecordPtr> held;      // what was fed stays alive until the step is over
  struct Preimage {
    c10::Storage target;
    at::Tensor copy;
  };
  std::map<int, Preimage> preimages;  // by slot: the bytes before the step wrote them, since the last commit
  std::vector<std::pair<at::Generator, uint64_t>> generator_offsets;  // before the first draw since the last commit
  std::vector<std::pair<int, RecordPtr>> given;  // slot -> value that the program got from an earlier part
  std::shared_ptr<TierOutcome> outcome;          // may be null

  void Clear();  // keeps the memory for another step
};

// A validated event that has not been committed.
struct LogEntry {
  int event = -1;
  Stack args;
  std::vector<at::Tensor> gradients_before;   // backward: what .grad of each leaf was
  std::vector<at::Tensor> gradients;          // ... and became, where it is a new one
  std::optional<at::Tensor> generator_state;  // CPU generator before the event, when it draws
  std::vector<std::pair<int, at::Tensor>> snapshots;  // external -> what foreign memory held
};

// What a step works with on the imperative thread. The next step takes the memory over.
struct StepScratch {
  std::vector<c10::Storage> tokens;   // per slot
  std::vector<at::Tensor> bound;      // per external: the tensor bound to a feed
  std::vector<c10::IValue> late;      // per late-bound scalar
  std::vector<LogEntry> log;          // events since `committed_events`
  std::vector<char> preimage_taken;   // per slot, since the last commit
  std::vector<char> launched_slots;   // per slot: a launched part fills its token
  std::vector<std::pair<int, RecordPtr>> fed;  // slot -> input of a launched part

  void Clear();
};

class OuterStep : public StepScratch {
 public:
  OuterStep(std::shared_ptr<const OuterPlan> plan, uint64_t id, StepScratch scratch);
  void ResizeSlots(size_t count);  // never shrinks
  // The step is over. Values that live on keep the object, not what the step worked with.
  StepScratch Release();

  std::shared_ptr<const OuterPlan> plan;
  const uint64_t id;
  std::shared_ptr<OuterTable> table;

  // Imperative thread only.
  std::vector<OuterPlaceholder*> live;   // per value; null: nobody holds it
  int cursor = 0;                        // events validated
  int committed_events = 0;
  int launched_events = 0;
  int64_t copied_bytes = 0;              // of memory that others may write to
  int dropped_events = 0;                // the graph runner has dropped what it may of these; not beyond the commits
  bool over = false;

  // Collected for the next part.
  std::vector<std::pair<int, Operand>> inputs;  // slot -> bytes
  std::vector<std::pair<int, at::Tensor>> draws;  // device op -> what the generator gave
};

}  // namespace outrider::seam
