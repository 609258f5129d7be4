#include "sched/simulate.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "sched/baselines.h"
#include "sched/holding.h"
#include "sched/outrider_policy.h"
#include "sched/readme_greedy.h"
#include "support/expert_bytes.h"
#include "support/random_load.h"

namespace outrider::sched {
namespace {

// Two experts of 100 bytes without common ones.
struct Small {
  std::vector<int64_t> bytes{0, 100, 100, 200};
  Machine machine{.experts = 2,
                  .ffn_bytes = bytes,
                  .fixed_bytes = 10,
                  .bytes_per_s = 100,
                  .token_s = 0.5,
                  .step_s = 0.25,
                  .requests_max = 4};
  StepLimits limits{.decode_tokens = 4, .prefill_tokens = 2};
};

TEST(Simulate, KeepsTimeByTheModel) {
  const Small small;
  const std::vector<uint8_t> experts{0, 0, 1, 1, 0};
  const std::vector<Arrival> arrivals{{.time_s = 3, .prompt_tokens = 3, .output_tokens = 2, .experts = experts}};
  const Simulation run = Simulate(arrivals, small.machine, small.limits, PlanChunkedFcfs);
  // Two chunks of the prompt, the second one gives the first token; one decode step for the other token.
  ASSERT_EQ(run.steps.size(), 3);
  EXPECT_DOUBLE_EQ(run.steps[0].begin_s, 3);
  EXPECT_DOUBLE_EQ(run.steps[0].seconds, 0.25 + 1.1 + 2 * 0.5);
  EXPECT_DOUBLE_EQ(run.steps[1].seconds, 0.25 + 1.1 + 0.5);
  EXPECT_DOUBLE_EQ(run.requests[0].ttft_s, 2.35 + 1.85);
  EXPECT_DOUBLE_EQ(run.requests[0].latency_s, 2.35 + 1.85 + 1.85);
  EXPECT_EQ(run.tokens, 4);
  EXPECT_EQ(run.weight_bytes, 330);
  EXPECT_DOUBLE_EQ(run.FfnBytesPerToken(), 75);
  EXPECT_DOUBLE_EQ(run.DistinctExperts(), 1);
  EXPECT_DOUBLE_EQ(run.seconds, 3 + run.requests[0].latency_s);
}

TEST(Simulate, TextsAndTheirContextTakeTime) {
  Small small;
  small.machine.text_s = 8;
  small.machine.context_token_s = 16;
  small.machine.prompt_pass_s = 128;
  const std::vector<uint8_t> experts{0, 0, 1, 1, 0};
  const std::vector<Arrival> arrivals{{.time_s = 0, .prompt_tokens = 2, .output_tokens = 3, .experts = experts}};
  const Simulation run = Simulate(arrivals, small.machine, small.limits, PlanChunkedFcfs);
  ASSERT_EQ(run.steps.size(), 3);
  EXPECT_DOUBLE_EQ(run.steps[0].seconds, 0.25 + 1.1 + 2 * 0.5 + 128);
  EXPECT_DOUBLE_EQ(run.steps[1].seconds, 0.25 + 1.1 + 0.5 + 8 + 2 * 16);
  EXPECT_DOUBLE_EQ(run.steps[2].seconds, 0.25 + 1.1 + 0.5 + 8 + 3 * 16);
}

TEST(Simulate, WaitsForArrivalsAndForRoom) {
  Small small;
  small.machine.requests_max = 1;
  const std::vector<uint8_t> experts{0, 0};
  const Arrival one{.time_s = 0, .prompt_tokens = 1, .output_tokens = 1, .experts = experts};
  Arrival late = one;
  late.time_s = 100;
  const Simulation run = Simulate(std::vector{one, one, late}, small.machine, small.limits, PlanOutrider);
  ASSERT_EQ(run.steps.size(), 3);
  EXPECT_DOUBLE_EQ(run.steps[1].begin_s, run.steps[0].seconds);
  EXPECT_DOUBLE_EQ(run.steps[2].begin_s, 100);
  EXPECT_DOUBLE_EQ(run.MeanTtft(), (2 * 1.85 + 2 * 1.85) / 3);
  EXPECT_DOUBLE_EQ(run.LatencyQuantile(0.5), 1.85);
  EXPECT_DOUBLE_EQ(run.LatencyQuantile(1), 3.7);
}

StepPlan PlanTwice(const Snapshot& snapshot) {
  StepPlan plan = PlanChunkedFcfs(snapshot);
  plan.slices.push_back(plan.slices.back());
  return plan;
}

TEST(Simulate, RefusesBrokenPlans) {
  const Small small;
  const std::vector<uint8_t> experts{0, 0};
  const std::vector<Arrival> arrivals{{.prompt_tokens = 1, .output_tokens = 1, .experts = experts}};
  EXPECT_THROW(Simulate(arrivals, small.machine, small.limits, PlanTwice), base::CheckError);
  EXPECT_THROW(Simulate(arrivals, small.machine, {}, PlanChunkedFcfs), base::CheckError);  // no budget at all
}

// A machine on which reading weights is nearly all of the time, and a model whose experts share half their channels.
struct Loaded {
  std::vector<int64_t> bytes = OverlappingBytes(7, 0.5, 1);
  Machine machine{.experts = 7,
                  .ffn_bytes = bytes,
                  .fixed_bytes = 10'000,
                  .bytes_per_s = 6.4e6,
                  .token_s = 1e-4,
                  .step_s = 1e-4,
                  .requests_max = 32};
  StepLimits limits{.decode_tokens = 16, .prefill_tokens = 64, .age_max = 8, .prefill_age_max = 8};
  double skew = 0.6;

  Simulation Run(double gap_s, Policy policy) const {
    LoadShape shape{.requests = 100, .gap_s = gap_s, .prompt_max = 16, .output_max = 96, .experts = 7};
    shape.skew = skew;
    const RandomLoad load(shape, 3);
    return Simulate(load.arrivals(), machine, limits, policy);
  }
};

TEST(SimulatedLoad, OutriderReadsFewerBytesUnderLoad) {
  const Loaded loaded;
  const Simulation ours = loaded.Run(0.001, PlanOutrider);
  const Simulation fcfs = loaded.Run(0.001, PlanChunkedFcfs);
  EXPECT_EQ(ours.tokens, fcfs.tokens);
  EXPECT_LT(ours.FfnBytesPerToken(), 0.92 * fcfs.FfnBytesPerToken());
  EXPECT_LT(ours.BytesPerToken(), 0.95 * fcfs.BytesPerToken());
  EXPECT_LT(ours.DistinctExperts(), fcfs.DistinctExperts() - 1);
  EXPECT_LT(ours.seconds, 0.95 * fcfs.seconds);
  EXPECT_LT(ours.MeanLatency(), fcfs.MeanLatency());
  EXPECT_LT(ours.LatencyQuantile(0.95), fcfs.LatencyQuantile(0.95));
}

TEST(SimulatedLoad, OutriderKeepsItsBoundAndGreedyQueuesDoNot) {
  const Loaded loaded;
  const int64_t bound = DelayBound(loaded.limits.age_max, {.experts = 7, .running = 32, .decode_tokens = 16});
  const auto most = [](const Simulation& run) {
    int64_t steps = 0;
    for (const RequestTimes& times : run.requests) steps = std::max(steps, times.passed_over_max);
    return steps;
  };
  EXPECT_LE(most(loaded.Run(0.001, PlanOutrider)), bound);
  EXPECT_GT(most(loaded.Run(0.001, PlanReadmeGreedy)), bound);
}

// Where tokens cost more than weights, running prompts ahead of decode items that wait anyway costs everybody time.
TEST(SimulatedLoad, HoldingPromptsShortensLatenciesUnderLoad) {
  Loaded loaded;
  loaded.machine.token_s = 1e-3;
  loaded.limits.prefill_age_max = 0;
  const RandomLoad load({.requests = 200, .gap_s = 0.05, .prompt_max = 96, .output_max = 24, .experts = 7}, 3);
  const auto run = [&](Policy policy) { return Simulate(load.arrivals(), loaded.machine, loaded.limits, policy); };
  const Simulation without = run(PlanOutrider), fcfs = run(PlanChunkedFcfs);
  loaded.limits.prompt_hold_max = 16;
  const Simulation held = run(PlanOutrider);
  EXPECT_EQ(held.tokens, without.tokens);
  EXPECT_LT(held.MeanLatency(), 0.97 * without.MeanLatency());
  EXPECT_LT(held.MeanLatency(), 0.97 * fcfs.MeanLatency());
  EXPECT_LT(held.LatencyQuantile(0.95), 0.97 * fcfs.LatencyQuantile(0.95));
  EXPECT_LT(held.seconds, 1.02 * without.seconds);
}

// A step as on a GPU: 5 ms for weights, 0.1 ms a text, 9 ms for having a prompt at all.
TEST(SimulatedLoad, PromptsThatShareAPassShortenLatenciesUnderLoad) {
  Loaded loaded;
  loaded.machine.bytes_per_s = static_cast<double>(10'000 + loaded.bytes.back()) / 0.005;
  loaded.machine.prompt_pass_s = 0.009;
  loaded.machine.requests_max = 64;
  loaded.limits = {.decode_tokens = 32, .prefill_tokens = 512, .age_max = 64, .prompt_hold_max = 16};
  const auto run = [&](double gap_s, Policy policy) {
    const RandomLoad load({.requests = 400, .gap_s = gap_s, .prompt_max = 300, .output_max = 200, .experts = 7}, 3);
    return Simulate(load.arrivals(), loaded.machine, loaded.limits, policy);
  };
  const Simulation ours = run(0.03, PlanOutrider), fcfs = run(0.03, PlanChunkedFcfs);
  EXPECT_LT(ours.MeanLatency(), 0.94 * fcfs.MeanLatency());
  EXPECT_LT(ours.LatencyQuantile(0.95), 0.97 * fcfs.LatencyQuantile(0.95));
  EXPECT_LT(ours.seconds, 1.01 * fcfs.seconds);
  const Simulation calm = run(1, PlanOutrider), calm_fcfs = run(1, PlanChunkedFcfs);
  EXPECT_LT(calm.MeanLatency(), 1.001 * calm_fcfs.MeanLatency());
  EXPECT_LT(calm.MeanTtft(), 1.01 * calm_fcfs.MeanTtft());
}

TEST(SimulatedLoad, OutriderCostsNothingAtLowLoad) {
  Loaded loaded;
  loaded.limits.prompt_hold_max = 16;
  for (const double gap_s : {10.0, 0.5}) {  // alone, or two or three at a time
    const Simulation ours = loaded.Run(gap_s, PlanOutrider);
    const Simulation fcfs = loaded.Run(gap_s, PlanChunkedFcfs);
    ASSERT_EQ(ours.steps.size(), fcfs.steps.size()) << gap_s;
    for (size_t i = 0; i < ours.steps.size(); ++i) ASSERT_EQ(ours.steps[i].plan, fcfs.steps[i].plan) << gap_s;
    EXPECT_EQ(ours.seconds, fcfs.seconds);
  }
}

// The machine and the lengths of the replay on two cores: a step reads its weights in 5 ms, a token takes 1.8 ms,
// prompts are five times as long as texts, experts share most channels. Just below saturation every text fits every
// step, nothing is worth holding, and what runs is what first come, first served runs.
TEST(SimulatedLoad, OutriderCostsNothingJustBelowSaturation) {
  Loaded loaded;
  loaded.bytes = OverlappingBytes(7, 0.75, 1);
  loaded.machine.ffn_bytes = loaded.bytes;
  loaded.machine.bytes_per_s = static_cast<double>(10'000 + loaded.bytes.back()) / 0.005;
  loaded.machine.token_s = 1.8e-3;
  loaded.machine.requests_max = 64;
  loaded.limits = {.decode_tokens = 32, .prefill_tokens = 64, .age_max = 64, .prompt_hold_max = 16};
  LoadShape shape{.requests = 400, .gap_s = 1e-6, .prompt_max = 190, .output_max = 40, .experts = 7};
  const auto run = [&](Policy policy) {
    return Simulate(RandomLoad(shape, 5).arrivals(), loaded.machine, loaded.limits, policy);
  };
  shape.gap_s = run(PlanChunkedFcfs).seconds / 400 / 0.9;
  const Simulation ours = run(PlanOutrider), fcfs = run(PlanChunkedFcfs);
  ASSERT_EQ(ours.steps.size(), fcfs.steps.size());
  for (size_t i = 0; i < ours.steps.size(); ++i) ASSERT_EQ(ours.steps[i].plan, fcfs.steps[i].plan) << i;
  EXPECT_EQ(ours.MeanLatency(), fcfs.MeanLatency());
  EXPECT_GT(fcfs.MeanLatency(), 1.0) << "many at a time";
}

// Experts with few and many common channels, machines on which they are most and little of the work, popular and rare
// experts: as many requests as fit.
TEST(SimulatedLoad, WhereAllFitsHoldingNeedsAClearGain) {
  double worst = 0, worst_for_any_gain = 0, best_limited = 10;  // seconds against first come, first served
  for (const double keep : {0.14, 0.5}) {
    for (const int64_t fixed_bytes : {3'000, 30'000}) {
      for (const double skew : {0.6, 0.9}) {
        Loaded loaded;
        loaded.bytes = OverlappingBytes(7, keep, 1);
        loaded.machine.ffn_bytes = loaded.bytes;
        loaded.machine.fixed_bytes = fixed_bytes;
        loaded.machine.requests_max = 12;
        loaded.skew = skew;
        const double fcfs_s = loaded.Run(0.001, PlanChunkedFcfs).seconds;
        worst = std::max(worst, loaded.Run(0.001, PlanOutrider).seconds / fcfs_s);
        loaded.limits.hold_gain_min = 1;
        worst_for_any_gain = std::max(worst_for_any_gain, loaded.Run(0.001, PlanOutrider).seconds / fcfs_s);
        loaded.limits.distinct_experts = 2;
        best_limited = std::min(best_limited, loaded.Run(0.001, PlanOutrider).seconds / fcfs_s);
      }
    }
  }
  EXPECT_LE(worst, 1.01);
  EXPECT_GT(worst_for_any_gain, 1.02);
  EXPECT_GT(best_limited, 1.05);
}

TEST(SimulatedLoad, DenseModelsRunEqually) {
  const std::vector<int64_t> bytes{50'000};
  const Machine machine{.ffn_bytes = bytes, .fixed_bytes = 10'000, .bytes_per_s = 6.4e6, .requests_max = 32};
  const RandomLoad load({.requests = 50, .gap_s = 0.01, .prompt_max = 16, .output_max = 16}, 3);
  const StepLimits limits = Loaded().limits;
  const Simulation ours = Simulate(load.arrivals(), machine, limits, PlanOutrider);
  const Simulation fcfs = Simulate(load.arrivals(), machine, limits, PlanChunkedFcfs);
  EXPECT_NEAR(ours.seconds, fcfs.seconds, 0.05 * fcfs.seconds);
  EXPECT_EQ(ours.tokens, fcfs.tokens);
}

}  // namespace
}  // namespace outrider::sched
