#pragma once
// A plan: one path of the program at one shape class, proved by two agreeing traces. Immutable.

#include <memory>
#include <string>
#include <vector>

#include "seam/outer_trace.h"
#include "seam/storage_record.h"

namespace outrider::seam {

struct OuterPlan : OuterTrace {
  std::vector<int> feeds;                          // externals that are bound anew each step
  std::vector<RecordPtr> persistent_records;       // storages of the program's state
  std::vector<int> persistent_slots;               // slot of each of them
  std::unordered_map<const StorageRecord*, int> slot_of_persistent;
  std::vector<std::pair<int, int>> late_sources;   // late-bound scalar -> (event, argument)
  std::vector<int> root_values;                    // where backward passes start
  uint32_t values_with_history = 0;                // no value from this one on requires grad
  std::vector<int> last_use;                       // per slot: its last device op, -1 if none

  // The program's state this plan was made for is gone.
  bool Expired() const;
  // Number of leading events in which the two plans are the same, ids included.
  size_t SharedPrefix(const OuterPlan& other) const;
};

struct PlanResult {
  std::shared_ptr<OuterPlan> plan;
  std::string why_not;  // first difference between the traces, or the refusal
};

// `older` and `newer` are two recordings of the same path. `newer` becomes part of the plan.
PlanResult MakePlan(const OuterTrace& older, OuterTrace&& newer);

}  // namespace outrider::seam
