// What it takes to draw one token from a row of logits, and to give logarithms of probabilities.
//   bench_sampling --benchmark_filter=Pick

#include <benchmark/benchmark.h>

#include <cstdint>
#include <random>
#include <vector>

#include "sampling/logprobs.h"
#include "sampling/sampler.h"

namespace {

using namespace outrider::sampling;

constexpr size_t kVocab = 49'152;  // of SmolLM2

// What a model that is sure of a few tokens gives, or one that knows nothing.
std::vector<float> Row(bool peaked) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, peaked ? 2.0F : 0.01F);
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = normal(random);
  for (size_t i = 1; peaked && i <= 6; ++i) logits[i * 7'919] = 18 - static_cast<float>(i);
  return logits;
}

void Pick(benchmark::State& state, Sampling sampling) {
  const std::vector<float> logits = Row(state.range(0) != 0);
  uint64_t step = 0;
  for (auto _ : state) benchmark::DoNotOptimize(PickToken(logits, sampling, step++));
}
// Argument: peaked.
BENCHMARK_CAPTURE(Pick, greedy, Sampling{})->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(Pick, all, Sampling{.temperature = 1})->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(Pick, top_p, Sampling{.temperature = 1, .top_p = 0.9})->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(Pick, top_k, Sampling{.temperature = 1, .top_k = 50})->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(Pick, top_k_top_p, Sampling{.temperature = 1, .top_k = 50, .top_p = 0.9})->Arg(1)->Arg(0);

void TopLogprobs(benchmark::State& state) {
  const std::vector<float> logits = Row(state.range(0) != 0);
  for (auto _ : state) benchmark::DoNotOptimize(LogprobsOf(logits, 3, 5));
}
BENCHMARK(TopLogprobs)->Arg(1)->Arg(0);

}  // namespace
