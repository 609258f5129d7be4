#pragma once
// A replay of arrivals on a virtual clock: what a policy does to latencies and to the bytes that are read. The real
// policies run on real snapshots; only the machine is a formula (step_cost.h).

#include <cstdint>
#include <span>
#include <vector>

#include "sched/policies.h"
#include "sched/step_plan.h"

namespace outrider::sched {

struct Arrival {
  double time_s = 0;                 // ascending
  int64_t prompt_tokens = 1;         // at least 1
  int64_t output_tokens = 1;         // at least 1
  std::span<const uint8_t> experts;  // of prompt and output; empty for a dense model
  int64_t priority = 0;
};

// Fields as in Snapshot.
struct Machine {
  int64_t experts = 0;
  std::span<const int64_t> ffn_bytes;
  int64_t fixed_bytes = 0;
  double bytes_per_s = 1;  // above 0
  double token_s = 0;
  double step_s = 0;           // of every step, whatever it does
  double text_s = 0;           // of each decode item, beside token_s
  double context_token_s = 0;  // of each token of prompt and output that a decode item has behind it
  double prompt_pass_s = 0;    // of every step that has a token of a prompt
  int64_t requests_max = 1;    // running at once; later ones wait in order of arrival
};

struct RequestTimes {
  double ttft_s = 0;            // from arrival to the end of the step that gives the first token
  double latency_s = 0;         // to the last token
  int64_t passed_over_max = 0;  // steps in a row that left out its ready decode item
};

struct SimulatedStep {
  double begin_s = 0;
  double seconds = 0;
  StepPlan plan;
};

struct Simulation {
  std::vector<RequestTimes> requests;  // as the arrivals
  std::vector<SimulatedStep> steps;
  int64_t tokens = 0;        // run, prompts and outputs
  int64_t weight_bytes = 0;  // read, fixed ones included
  int64_t ffn_bytes = 0;     // the part that depends on experts
  double seconds = 0;        // end of the last step

  double BytesPerToken() const { return static_cast<double>(weight_bytes) / static_cast<double>(tokens); }
  double FfnBytesPerToken() const { return static_cast<double>(ffn_bytes) / static_cast<double>(tokens); }
  double DistinctExperts() const;  // per step, on average
  double MeanTtft() const;
  double MeanLatency() const;
  double LatencyQuantile(double q) const;  // q in [0, 1], nearest rank
};

// Throws CheckError if the policy's plan breaks an invariant (violations.h) or does nothing while work is ready.
Simulation Simulate(std::span<const Arrival> arrivals, const Machine& machine, const StepLimits& limits, Policy policy);

}  // namespace outrider::sched
