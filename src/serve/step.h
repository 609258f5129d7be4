#pragma once
// One step: what a policy may choose from, and the pass over what it chose.

#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "sched/step_plan.h"
#include "serve/executor.h"
#include "serve/request_state.h"
#include "serve/stats.h"

namespace outrider::serve {

using StatePtr = std::unique_ptr<RequestState>;
using RunningList = std::vector<StatePtr>;  // by id, ascending

// What may run of each running request (RequestState::ready); the spans point into the requests.
std::vector<sched::ReadyItem> ReadyItems(const RunningList& running, bool with_plan);

// A plan names each item once at most, in its lane, with tokens that it has and a step can take, and runs something
// when there is something. Code: E_PLAN.
base::Result<void> CheckPlan(const sched::StepPlan& plan, const sched::Snapshot& snapshot, int64_t step_tokens_max);

// Rows of logits of one slice: of the last `rows` tokens of it.
struct SliceRun {
  RequestState* state = nullptr;
  int64_t tokens = 0;
  int64_t rows = 0;
  int64_t row = 0;  // of all rows of the step, the first of this slice
  bool draws() const { return tokens == state->rest(); }
};

// The slices of a plan as runs. A request that echoes log-probabilities is cut to the `echo_rows_max` rows that all of
// them may take in one step.
std::vector<SliceRun> SliceRuns(const sched::StepPlan& plan, const RunningList& running, int64_t echo_rows_max);

// What a pass says about the rows of a step: logits, or only likeliest ids where nobody needs more. Memory is kept from
// step to step.
class StepRows {
 public:
  // Of one slice, in order: `likeliest` has one a row, or none; then `logits` [rows, vocab] has all.
  struct Of {
    std::span<const int64_t> likeliest;
    std::span<const float> logits;
  };

  // Nothing of the requests is changed. Codes: those of the executor.
  base::Result<RunCost> Run(Executor& executor, std::span<const TokenRun> runs, int64_t rows, bool greedy);
  Of Find(const SliceRun& slice) const;
  bool greedy() const { return greedy_; }

 private:
  bool greedy_ = false;
  size_t vocab_ = 0;
  std::vector<int64_t> likeliest_;
  std::vector<float> logits_;
};

// Runs the slices. Nothing of the requests is changed.
// Codes: E_PLAN a token without an expert in the plan; those of the executor.
base::Result<RunCost> RunSlices(Executor& executor, std::span<const SliceRun> slices, StepRows& to, EngineStats& stats);

}  // namespace outrider::serve
