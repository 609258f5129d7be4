#pragma once
// Turns the counters of a step into the row that users see. Observes all, decides nothing.

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "outrider/coexec.h"
#include "seam/step_stats.h"

namespace outrider::coexec {

class Report {
 public:
  static constexpr size_t kRowsMax = 4096;

  struct StepFacts {
    int64_t step = 0;
    std::string name, lane, tier, note;
    bool recorded = false;
    std::shared_ptr<seam::TierOutcome> outcome;  // what the graph runner made, or is still making, of the step
    int64_t host_ns = 0, host_wait_ns = 0, runner_busy_ns = 0;
  };
  void Add(const StepFacts& facts, const seam::StepStats& stats);
  // Brings the tiers of the last steps up to date first.
  const std::deque<Row>& Rows() const;
  void Clear();

 private:
  static void Complete(Row& row, const seam::TierOutcome& outcome);

  mutable std::deque<Row> rows_;
  // Rows the graph runner may still add to, by step; the oldest are settled.
  mutable std::deque<std::pair<int64_t, std::shared_ptr<seam::TierOutcome>>> open_;
};

}  // namespace outrider::coexec
