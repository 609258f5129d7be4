#pragma once
// A plan: one path of the program at one shape class, proved by two agreeing traces. Immutable but for its executable
// forms and what is looked up again and again.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "seam/outer_trace.h"
#include "seam/storage_record.h"

namespace outrider::seam {

class PlanGraphs;

// What a range of a plan's device ops touches.
struct RangeFacts {
  std::vector<int> slots;                    // values and inputs of the step
  std::vector<StorageRecord*> persistent;    // state of the program
  std::vector<int> written_inputs;           // external slots that are written, snapshots left out
  int64_t counted_ops = 0;                   // device ops in the sense of the reports
};

struct OuterPlan : OuterTrace, std::enable_shared_from_this<OuterPlan> {
  std::vector<int> feeds;                          // externals that are bound anew each step
  std::vector<RecordPtr> persistent_records;       // storages of the program's state
  std::vector<int> persistent_slots;               // slot of each of them
  std::unordered_map<const StorageRecord*, int> slot_of_persistent;
  std::vector<std::pair<int, int>> late_sources;   // late-bound scalar -> (event, argument)
  std::vector<int> root_values;                    // where backward passes start
  uint32_t values_with_history = 0;                // no value from this one on requires grad
  std::vector<int> first_use;                      // per slot: its first device op, -1 if none ...
  std::vector<int> last_use;                       // ... and its last
  std::vector<char> written;                       // per slot: some device op writes to it
  std::vector<std::vector<int>> variables_of_slot;
  std::vector<char> early_cuts;                    // per event: a part may end behind it although neither BACKWARD nor
                                                   // the end of the step has come
  std::vector<char> graph_cuts;                    // ... where parts run as device graphs
  int last_backward = -1;                          // the event, -1 if none: what comes behind it may be committed
  std::vector<std::vector<int>> externals_of_slot;
  // Executable forms, touched by the graph runner only; null where the device has none.
  std::shared_ptr<PlanGraphs> graphs;

  // Imperative thread only.
  const RangeFacts& Facts(int first_op, int end_op) const;

  // The program's state this plan was made for is gone.
  bool Expired() const;
  // A step that runs as the recorded one would follow this plan.
  bool Accepts(const OuterTrace& trace) const;
  // Number of leading events in which the two plans are the same, ids included.
  size_t SharedPrefix(const OuterPlan& other) const;

 private:
  size_t CompareEvents(const OuterPlan& other) const;

  mutable std::map<std::pair<int, int>, RangeFacts> facts_;
  mutable std::vector<std::pair<std::weak_ptr<const OuterPlan>, size_t>> shared_;  // with plans met before
};

// Calls visit(slot) for each use of a slot by an argument, or by an op's arguments and results.
template <typename Visit>
void VisitSlots(const OuterPlan& plan, const Arg& arg, const Visit& visit) {
  if (arg.code == Arg::Code::kVariable) visit(plan.variables[arg.id].slot);
  for (const auto& element : arg.list) VisitSlots(plan, element, visit);
}

template <typename Visit>
void VisitSlots(const OuterPlan& plan, const DeviceOp& op, const Visit& visit) {
  for (const auto& arg : op.args) VisitSlots(plan, arg, visit);
  for (const auto& arg : op.outputs) VisitSlots(plan, arg, visit);
}

// `late` is late-bound; `seen` is a scalar of the same kind.
bool FitsLate(const Arg& late, const Arg& seen);

struct PlanResult {
  std::shared_ptr<OuterPlan> plan;
  std::string why_not;  // first difference between the traces, or the refusal
  bool view_moves = false;  // ... the difference: another place in the same view of an input
};

// `older` and `newer` are two recordings of the same path. `newer` becomes part of the plan.
PlanResult MakePlan(const OuterTrace& older, OuterTrace&& newer);

}  // namespace outrider::seam
