#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include "sched/policies.h"
#include "sched/simulate.h"
#include "support/below.h"
#include "support/expert_bytes.h"
#include "support/random_load.h"

namespace outrider::sched {
namespace {

// Every policy brings every request to its end, runs each token once, and keeps time going forward.
RC_GTEST_PROP(SimulateProperty, AllWorkIsDone, ()) {
  const int64_t experts = Below(8);
  const std::vector<int64_t> bytes = OverlappingBytes(experts, 0.5, Below(1000), 16);
  const LoadShape shape{
      .requests = Below(12), .gap_s = 0.05 * Below(4), .prompt_max = 12, .output_max = 8, .experts = experts};
  const RandomLoad load(shape, Below(1'000'000));
  Machine machine{.experts = experts, .ffn_bytes = bytes, .fixed_bytes = 1000, .bytes_per_s = 1e5, .token_s = 1e-3};
  machine.requests_max = 1 + Below(8);
  // decode_first never reaches prompts while decode items fill the larger of both budgets.
  StepLimits limits{.decode_tokens = 1 + Below(4), .prefill_tokens = 5 + Below(8)};
  limits.distinct_experts = Below(3);
  limits.age_max = Below(4);
  limits.prefill_age_max = Below(4);
  limits.ffn_bytes_max = 1000 * Below(12);
  int64_t tokens = 0;
  for (const Arrival& arrival : load.arrivals()) tokens += arrival.prompt_tokens + arrival.output_tokens - 1;
  for (const NamedPolicy& named : Policies()) {
    RC_LOG() << named.name << "\n";
    const Simulation run = Simulate(load.arrivals(), machine, limits, named.policy);
    RC_ASSERT(run.tokens == tokens);
    for (size_t i = 0; i < run.requests.size(); ++i) {
      RC_ASSERT(run.requests[i].ttft_s > 0);
      RC_ASSERT(run.requests[i].latency_s >= run.requests[i].ttft_s);
      RC_ASSERT(load.arrivals()[i].time_s + run.requests[i].latency_s <= run.seconds + 1e-9);
    }
    for (size_t i = 1; i < run.steps.size(); ++i) {
      RC_ASSERT(run.steps[i].begin_s >= run.steps[i - 1].begin_s + run.steps[i - 1].seconds - 1e-9);
    }
  }
}

}  // namespace
}  // namespace outrider::sched
