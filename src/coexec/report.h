#pragma once
// Turns the counters of a step into the row that users see. Observes all, decides nothing.

#include <deque>
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
    int64_t host_ns = 0, host_wait_ns = 0, runner_busy_ns = 0;
  };
  void Add(const StepFacts& facts, const seam::StepStats& stats);
  const std::deque<Row>& Rows() const { return rows_; }
  void Clear() { rows_.clear(); }

 private:
  std::deque<Row> rows_;
};

}  // namespace outrider::coexec
