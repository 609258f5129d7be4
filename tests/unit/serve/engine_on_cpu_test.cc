// The engine on the CPU executor and router, with a tiny random model: the same texts, bit for bit, whatever else runs.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "cpu_support.h"
#include "sched/policies.h"
#include "serve/admission.h"
#include "serve/core.h"
#include "support/serve_support.h"

namespace outrider::serve::tests {
namespace {

constexpr int64_t kExperts = 5;

RouterSpec TinyRouter() {
  RouterSpec spec;
  spec.vocab = 101;
  spec.experts = kExperts;
  spec.width = 40;
  spec.heads = 4;
  return spec;
}

Tensors TinyRouterWeights(const RouterSpec& s) {
  std::mt19937 random(5);
  Tensors t;
  t.AddNormal(random, "embed.weight", {s.vocab, s.width}, 1);
  const auto matrix = [&](const std::string& name, int64_t rows) {
    t.AddNormal(random, name + ".weight", {rows, s.width}, 1 / std::sqrt(static_cast<float>(s.width)));
    t.AddNormal(random, name + ".bias", {rows}, 0.2F);
  };
  for (const char* name : {"block.attn_norm.weight", "block.mlp_norm.weight", "norm.weight"})
    t.AddNormal(random, name, {s.width}, 0.2F, 1);
  for (const char* name : {"block.q", "block.k", "block.v", "block.o", "block.w1", "block.w2"}) matrix(name, s.width);
  matrix("head", s.experts);
  return t;
}

struct Setting {
  const char* policy = "chunked_fcfs";
  int64_t decode_tokens = 1, prefill_tokens = 127, distinct_experts = 0;
  int64_t running_max = 1, kv_pages = 60;
  int threads = 1;
  EngineOptions::PrefixCache prefix_cache = EngineOptions::PrefixCache::kOff;
};

test::ToldStreams Serve(kernels::Number number, const Setting& setting, const std::vector<Request>& requests,
                        EngineStats* stats = nullptr) {
  const spec::Config config = TinyConfig();
  const Tensors weights = RandomWeights(config, 1), router_weights = TinyRouterWeights(TinyRouter());
  const auto workers = std::make_shared<kernels::Workers>(setting.threads);
  const PassLimits limits{.context = 160, .kv_pages = setting.kv_pages, .route_pages = 120, .step_tokens_max = 128};
  auto executor = CpuExecutor::Make(*CpuModel::Pack(config, RandomExperts(config, kExperts, 2), weights.source, number),
                                    limits, workers)
                      .value();
  auto router =
      CpuRouter::Make(TinyRouter(), router_weights.source, config.hidden_size, executor->shape(), workers).value();
  EngineOptions options;
  options.policy = sched::FindPolicy(setting.policy);
  options.limits.decode_tokens = setting.decode_tokens;
  options.limits.prefill_tokens = setting.prefill_tokens;
  options.limits.distinct_experts = setting.distinct_experts;
  options.limits.age_max = 4;
  options.running_max = setting.running_max;
  options.prefix_cache = setting.prefix_cache;
  options.self_check = EngineOptions::SelfCheck::kOn;
  options = CompleteOptions(options, executor->shape()).value();
  test::ToldStreams told;
  EngineCore core(*executor, router.get(), options, [&told](Event event) {
    test::Collect(told, {std::move(event)});
    return true;
  });
  for (size_t i = 0; i < requests.size(); ++i) {
    auto state = MakeState(requests[i], TextMax(requests[i], executor->shape(), options).value());
    state->id = i;
    core.Add(std::move(state));
    if (i % 3 == 0) core.Step();
  }
  while (core.Step()) {
  }
  const EngineStats found = core.Stats();
  EXPECT_EQ(found.first_violation, "");
  EXPECT_EQ(found.plan_mismatches, 0);
  EXPECT_GT(found.plan_checked, 0);
  EXPECT_GT(found.ffn_bytes, 0);
  if (stats != nullptr) *stats = found;
  return told;
}

std::vector<Request> Requests() {
  std::mt19937_64 random(11);
  std::vector<Request> requests;
  for (int i = 0; i < 10; ++i) {
    Request request;
    const auto length = static_cast<int64_t>(1 + random() % 90);
    for (int64_t k = 0; k < length; ++k)
      request.prompt.push_back(static_cast<int32_t>(k < length / 2 ? (k * 7) % 101 : random() % 101));
    request.max_tokens = 24;
    if (i % 2 == 1) request.sampling = {.temperature = 0.8, .top_k = 20, .top_p = 0.95, .seed = random()};
    if (i % 4 == 3) request.sampling.repetition_penalty = 1.3;
    request.logprobs = i % 5 == 0 ? 2 : -1;
    requests.push_back(request);
  }
  return requests;
}

TEST(EngineOnCpu, EachTextIsThatOfTheRequestAlone) {
  const std::vector<Request> requests = Requests();
  for (const auto number : {kernels::Number::kF32, kernels::Number::kI8}) {
    const test::ToldStreams alone = Serve(number, {}, requests);
    std::vector<Setting> settings;
    for (const sched::NamedPolicy& named : sched::Policies())
      settings.push_back({.policy = named.name.data(), .decode_tokens = 8, .prefill_tokens = 30, .running_max = 8});
    settings.push_back({.policy = "outrider",
                        .decode_tokens = 6,
                        .prefill_tokens = 7,
                        .distinct_experts = 2,
                        .running_max = 10,
                        .threads = 2});
    settings.push_back({.decode_tokens = 4, .prefill_tokens = 1, .running_max = 4});
    settings.push_back({.decode_tokens = 8, .running_max = 3, .prefix_cache = EngineOptions::PrefixCache::kOn});
    settings.back().prefill_tokens = 100;
    settings.push_back(
        {.policy = "outrider", .decode_tokens = 8, .prefill_tokens = 50, .running_max = 8, .kv_pages = 11});
    for (const Setting& setting : settings) {
      EngineStats stats;
      const test::ToldStreams told = Serve(number, setting, requests, &stats);
      for (const auto& [id, expected] : alone) {
        const test::Told& found = told.at(id);
        EXPECT_EQ(found.tokens, expected.tokens) << setting.policy << ", request " << id;
        EXPECT_EQ(found.experts, expected.experts) << setting.policy << ", request " << id;
        ASSERT_EQ(found.logprobs.size(), expected.logprobs.size());
        for (size_t i = 0; i < found.logprobs.size(); ++i)
          EXPECT_EQ(found.logprobs[i].logprob, expected.logprobs[i].logprob);
      }
      if (setting.kv_pages == 11) {
        EXPECT_GT(stats.preemptions, 0);
      }
      if (setting.prefix_cache == EngineOptions::PrefixCache::kOn) {
        EXPECT_GT(stats.prefix_hit_tokens, 0);
      }
    }
  }
}

}  // namespace
}  // namespace outrider::serve::tests
