#pragma once
// What an engine counted since it was made. Plain data; whoever publishes it gives names and units.

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "sched/step_fit.h"

namespace outrider::serve {

// Counts of values at most as large as each bound; the last count is of larger ones.
struct StepSecondsHistogram {
  static constexpr std::array<double, 14> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05,
                                                     0.075, 0.1,    0.15,  0.25, 0.5,  1,     2.5};
  std::array<int64_t, kBounds.size() + 1> counts{};
  int64_t count = 0;
  double sum_s = 0;

  void Add(double seconds) {
    size_t bucket = 0;
    while (bucket < kBounds.size() && seconds > kBounds[bucket]) ++bucket;
    ++counts[bucket];
    ++count;
    sum_s += seconds;
  }
};

struct EngineStats {
  // Requests, by how they ended; `rejected` by error code.
  int64_t submitted = 0, stopped = 0, length = 0, cancelled = 0, deadline = 0, failed = 0;
  std::map<std::string, int64_t> rejected;
  int64_t slow_readers = 0;  // of the cancelled ones
  int64_t late_first = 0;    // of `deadline`: those whose first token could no longer come in time

  // Now.
  int64_t queued = 0, running = 0, tokens_admitted = 0;
  int64_t backlog_prompt_tokens = 0, backlog_tokens = 0;         // admitted, not run yet
  int64_t kv_pages = 0, kv_pages_used = 0, kv_pages_cached = 0;  // used: by requests; cached: by the prefix cache alone
  int64_t route_pages = 0, route_pages_used = 0;
  int64_t open_streams = 0;  // last event not polled yet
  double since_step_s = 0;   // since a step ended, while there is work; else 0
  int64_t writing = 0;       // of the running ones, those whose prompt is done
  int64_t texts_max = 0;     // requests that may run at once
  bool draining = false;

  // Work.
  int64_t steps = 0, failed_steps = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0;
  int64_t written_tokens = 0;
  int64_t prefix_hit_tokens = 0, plan_hit_tokens = 0;  // not computed, not routed, because another text had them
  int64_t routed_tokens = 0;
  int64_t prompt_steps = 0;  // steps that ran tokens which prefill_tokens counts
  int64_t held_items = 0;
  int64_t hold_steps_max = 0;          // the longest that an item was passed over
  int64_t hold_age_max = 0;            // now: the age at which an item is overdue, in steps; 0: none is held
  int64_t distinct_experts = 0;        // summed over steps
  std::vector<int64_t> expert_tokens;  // executed, by expert
  int64_t preemptions = 0, dropped_plans = 0;
  int64_t weight_bytes = 0, ffn_bytes = 0;
  double executor_s = 0, router_s = 0, policy_s = 0, host_s = 0;  // host: of steps, all the rest
  double prompt_pass_s = 0;  // of executor_s: passes that prompts had for themselves
  StepSecondsHistogram step_seconds;

  // Must stay zero.
  int64_t unplanned_tokens = 0;  // executed without an expert id in the plan
  int64_t plan_mismatches = 0;   // ids that another pass of the router did not confirm (self check)
  int64_t plan_checked = 0;      // ids compared
  int64_t invariant_violations = 0;
  std::string first_violation;

  // Measured, for policies and admission; 0: not yet.
  double bytes_per_s = 0, token_s = 0, goodput_tokens_per_s = 0;
  double prefill_tokens_per_s = 0;  // of prompts, cached tokens included, over the time that some wait
  double step_p95_s = 0;            // of the last steps
  sched::StepFit step_fit;
  double text_tokens = 0;  // that texts write, the mean; before any ended, what those that run may still write

  std::string device_error;  // why the machine is lost; empty: it is not

  // Reason of each mode in which the engine does less than it should, with how often it was entered.
  std::map<std::string, int64_t> degraded;
};

}  // namespace outrider::serve
