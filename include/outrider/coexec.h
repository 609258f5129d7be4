#pragma once
// Public interface of co-execution for C++ programs. No torch header is needed to include it.
//
//   for (auto& batch : loader) {
//     outrider::StepScope step("train");   // begins a step; its destructor ends it
//     ... ordinary libtorch code ...
//   }

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace outrider {

struct DivergenceRow {
  int64_t event = 0;     // index of the operator or host event in the step
  std::string code;      // DIV_...
  std::string expected, got, field;
  std::string where;     // user's file:line, empty in C++ programs
};

// One finished step.
struct Row {
  int64_t step = 0;
  std::string name;
  std::string lane;              // "off", "record", "inner", "outer"
  std::string tier;              // "eager", "T0", "T2"
  bool recorded = false;         // the outer lane wrote this step down, to make a plan of it
  int64_t events = 0;            // host events validated by the outer lane
  int64_t device_ops = 0;        // operators with device work, the denominator of covered_share
  int64_t covered_ops = 0;       // of these, run by the graph runner
  int64_t host_ops = 0;          // CPU random draws, 0-dim host counters, bare allocations: outside the denominator
  std::map<std::string, int64_t> inline_ops;  // device operators that ran on the host
  int64_t feeds = 0;
  int64_t copied_bytes = 0;  // of inputs, in a covered step of the outer lane
  int64_t fetches = 0;
  std::map<std::string, int64_t> flushes;  // by reason code
  std::vector<DivergenceRow> divergences;
  int64_t replayed_events = 0;
  double host_us = 0;         // wall time of the step on the imperative thread
  double host_wait_us = 0;    // of it, waiting for the graph runner
  double runner_busy_us = 0;
  double runner_wait_us = 0;
  std::string note;

  double CoveredShare() const { return device_ops == 0 ? 1.0 : static_cast<double>(covered_ops) / static_cast<double>(device_ops); }
};

// One step of the program on this thread. Nested scopes and scopes on a second thread do nothing.
class StepScope {
 public:
  explicit StepScope(const char* name = "step");
  ~StepScope();
  StepScope(const StepScope&) = delete;
  StepScope& operator=(const StepScope&) = delete;

  // False: nested, or on a second thread; this scope leaves no row.
  bool Active() const { return active_; }

 private:
  bool active_;
  int exceptions_;
};

// Rows of the last steps, oldest first.
std::vector<Row> Rows();
// The newest of them; nothing before the first step has ended.
std::optional<Row> LastRow();
// Completes all pending work; rethrows an error of the graph runner.
void Flush();
// Completes pending work and takes the hooks out of this thread.
void Leave();

// For tests and debugging; takes effect with the next step. The names and what they mean, with their numbers:
//   lane    0 auto, 1 inner, 2 outer, 3 off
//   flush   0 never, 1 after every operator, 2 at random places
//   force_step, force_event   in that step, act at that event as if the program had left the plan; -1 never
// Throws a std::exception for any other name.
void SetOption(const std::string& name, int64_t value);

}  // namespace outrider
