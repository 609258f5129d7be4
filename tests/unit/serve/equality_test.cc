// A text depends on its request alone: not on policy, chunks, batch, prefix cache, preemption, or on others that end.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <random>
#include <thread>

#include "sched/policies.h"
#include "support/core_run.h"

namespace outrider::serve {
namespace {

using test::CoreRun;
using test::FakeShape;
using test::RandomRequests;
using test::Reference;
using test::TestOptions;

struct Setting {
  std::string policy = "chunked_fcfs";
  int64_t decode_tokens = 16, prefill_tokens = 48, distinct_experts = 0, age_max = 8;
  int64_t running_max = 64;
  EngineOptions::PrefixCache prefix_cache = EngineOptions::PrefixCache::kOn;
  int64_t kv_pages = 256, route_pages = 512;
  int64_t experts = 5;
  bool prompts_apart = false;
};

ModelShape ShapeOf(const Setting& setting) {
  ModelShape shape = FakeShape();
  shape.kv_pages = setting.kv_pages;
  shape.route_pages = setting.route_pages;
  shape.experts = setting.experts;
  shape.prompts_apart = setting.prompts_apart;
  return shape;
}

EngineOptions OptionsOf(const Setting& setting) {
  EngineOptions options = TestOptions();
  options.policy = sched::FindPolicy(setting.policy);
  options.limits.decode_tokens = setting.decode_tokens;
  options.limits.prefill_tokens = setting.prefill_tokens;
  options.limits.distinct_experts = setting.distinct_experts;
  options.limits.age_max = setting.age_max;
  options.limits.prefill_age_max = setting.age_max;
  options.running_max = setting.running_max;
  options.prefix_cache = setting.prefix_cache;
  return options;
}

EngineStats ExpectTexts(CoreRun& run, const Setting& setting, const std::vector<Request>& requests, uint64_t seed) {
  const ModelShape shape = ShapeOf(setting);
  std::mt19937_64 random(seed);
  for (const Request& request : requests) {
    run.Submit(request);
    run.Steps(static_cast<int>(random() % 3));
  }
  EXPECT_TRUE(run.ToTheEnd());
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto expected = Reference(requests[i], shape);
    const test::Told& told = run.told[i + 1];
    EXPECT_EQ(told.tokens, expected.written) << setting.policy << ", request " << i;
    EXPECT_EQ(told.experts, expected.experts) << setting.policy << ", request " << i;
    EXPECT_EQ(told.finishes, std::vector{expected.finish}) << told.last.error;
  }
  const EngineStats stats = run.core.Stats();
  EXPECT_EQ(stats.first_violation, "");
  EXPECT_EQ(stats.unplanned_tokens, 0);
  EXPECT_EQ(stats.plan_mismatches, 0);
  EXPECT_EQ(stats.kv_pages_used, 0);
  return stats;
}

// The last body first, on two threads.
void OnTwoThreads(int64_t count, const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> left = count;
  const auto work = [&] {
    for (int64_t i = --left; i >= 0; i = --left) body(i);
  };
  std::thread other(work);
  work();
  other.join();
}

// Where tokens are drawn by several threads, too.
EngineStats ExpectReferences(const Setting& setting, const std::vector<Request>& requests, uint64_t seed = 0) {
  EngineOptions options = OptionsOf(setting);
  options.for_each = &OnTwoThreads;
  CoreRun with_threads(options, ShapeOf(setting)), without(OptionsOf(setting), ShapeOf(setting));
  ExpectTexts(with_threads, setting, requests, seed);
  return ExpectTexts(without, setting, requests, seed);
}

// A millisecond a token, two every other step: chunks and texts at once are another number in each step.
TEST(Equality, GoalsBoundStepsAndNoText) {
  const std::vector<Request> requests = RandomRequests(9, 24);
  for (const sched::NamedPolicy& named : sched::Policies()) {
    Setting setting;
    setting.policy = named.name;
    EngineOptions options = OptionsOf(setting);
    options.tpot_goal_ms = 20;
    int64_t* now_ns = nullptr;
    std::vector<int64_t> chunks;
    options.policy = [&](const sched::Snapshot& snapshot) {
      chunks.push_back(snapshot.limits.prefill_tokens);
      sched::StepPlan plan = named.policy(snapshot);
      for (const sched::Slice& slice : plan.slices) *now_ns += slice.tokens * (snapshot.step % 2 + 1) * 1'000'000;
      return plan;
    };
    CoreRun run(options, ShapeOf(setting));
    now_ns = &run.now_ns;
    ExpectTexts(run, setting, requests, 9);
    EXPECT_GE(*std::ranges::min_element(chunks), 6);
    std::ranges::sort(chunks);
    EXPECT_GT(std::ranges::unique(chunks).begin() - chunks.begin(), 3) << "of different sizes";
  }
}

// 30 ms for having a prompt at all, a millisecond a token: steps have no prompt, or all that wait.
TEST(Equality, GoalsThatSaveForPassesBoundNoText) {
  const std::vector<Request> requests = RandomRequests(9, 24);
  for (const sched::NamedPolicy& named : sched::Policies()) {
    Setting setting;
    setting.policy = named.name;
    setting.prompts_apart = true;
    EngineOptions options = OptionsOf(setting);
    options.tpot_goal_ms = 20;
    int64_t* now_ns = nullptr;
    int64_t closed = 0, whole = 0;
    options.policy = [&](const sched::Snapshot& snapshot) {
      (snapshot.limits.prefill_tokens == 0 ? closed : whole) += 1;
      if (snapshot.prompt_pass.setup_s > 0) {
        EXPECT_TRUE(snapshot.limits.prefill_tokens == 0 || snapshot.limits.prefill_tokens == setting.prefill_tokens);
      }
      sched::StepPlan plan = named.policy(snapshot);
      for (const sched::Slice& slice : plan.slices) *now_ns += slice.tokens * 1'000'000;
      *now_ns += std::ranges::count(plan.slices, sched::Lane::kPrefill, &sched::Slice::lane) > 0 ? 30'000'000 : 0;
      return plan;
    };
    CoreRun run(options, ShapeOf(setting));
    now_ns = &run.now_ns;
    run.executor.prompt_pass_s = 0.030;
    ExpectTexts(run, setting, requests, 9);
    EXPECT_GT(closed, 10) << named.name;
    EXPECT_GT(whole, 10) << named.name;
  }
}

TEST(Equality, EveryPolicyChunkAndBatch) {
  const std::vector<Request> requests = RandomRequests(1, 10);
  for (const sched::NamedPolicy& named : sched::Policies()) {
    for (const int64_t prefill : {1, 5, 48}) {
      for (const int64_t decode : {1, 3, 16}) {
        for (const int64_t distinct : {0, 2}) {
          Setting setting;
          setting.policy = named.name;
          setting.prefill_tokens = prefill;
          setting.decode_tokens = decode;
          setting.distinct_experts = distinct;
          const EngineStats stats = ExpectReferences(setting, requests, static_cast<uint64_t>(prefill * decode));
          EXPECT_GT(stats.plan_checked, 0);
        }
      }
    }
  }
}

TEST(Equality, PrefixCacheOnOrOff) {
  const std::vector<Request> requests = RandomRequests(2, 24);
  Setting setting;
  setting.running_max = 2;  // one after the other, so that there is something to find
  EXPECT_GT(ExpectReferences(setting, requests).prefix_hit_tokens, 50);
  setting.prefix_cache = EngineOptions::PrefixCache::kOff;
  EXPECT_EQ(ExpectReferences(setting, requests).prefix_hit_tokens, 0);
}

TEST(Equality, PagesForOneTextOnly) {
  for (const uint64_t seed : {3, 4, 5}) {
    const std::vector<Request> requests = RandomRequests(seed, 16);
    for (const auto cache : {EngineOptions::PrefixCache::kOff, EngineOptions::PrefixCache::kOn}) {
      for (const int64_t route_pages : {24, 30, 512}) {
        Setting setting;
        setting.policy = seed == 3 ? "outrider" : "decode_first";
        setting.kv_pages = 24;
        setting.route_pages = route_pages;
        setting.prefix_cache = cache;
        const EngineStats stats = ExpectReferences(setting, requests, seed);
        EXPECT_GT(stats.preemptions, 0);
        if (route_pages == 24) {
          EXPECT_GT(stats.dropped_plans, 0);
        }
        if (route_pages == 512) {
          EXPECT_EQ(stats.dropped_plans, 0);
        }
      }
    }
  }
}

// On a machine whose keys and values of what was written are not those of the same tokens in a prompt.
TEST(Equality, PromptsByAPathOfTheirOwn) {
  for (const int64_t experts : {0, 5}) {
    for (const int64_t kv_pages : {24, 30, 256}) {
      for (const int64_t prefill : {1, 5, 48}) {
        Setting setting;
        setting.policy = experts > 0 ? "outrider" : "chunked_fcfs";
        setting.experts = experts;
        setting.kv_pages = kv_pages;
        setting.prefill_tokens = prefill;
        setting.prompts_apart = true;
        if (kv_pages == 256) setting.running_max = 2;
        const EngineStats stats = ExpectReferences(setting, RandomRequests(11, 24), 3);
        if (kv_pages == 24) {
          EXPECT_GT(stats.preemptions, 0);
        }
        if (kv_pages == 256) {
          EXPECT_GT(stats.prefix_hit_tokens, 50);
        }
      }
    }
  }
}

TEST(Equality, WhatWasWrittenIsNoPrefixOfAPromptByAnotherPath) {
  for (const bool apart : {false, true}) {
    Setting setting;
    setting.prompts_apart = apart;
    const ModelShape shape = ShapeOf(setting);
    CoreRun run(OptionsOf(setting), shape);
    Request first;
    first.prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9};  // two pages and one token
    first.max_tokens = 20;
    run.Submit(first);
    ASSERT_TRUE(run.ToTheEnd());
    Request second = first;
    second.prompt.insert(second.prompt.end(), run.told[1].tokens.begin(), run.told[1].tokens.end());
    run.Submit(second);
    ASSERT_TRUE(run.ToTheEnd());
    EXPECT_EQ(run.told[2].tokens, Reference(second, shape).written);
    EXPECT_EQ(run.told[2].last.cached_tokens, apart ? 8 : 28);
    EXPECT_EQ(run.core.Stats().plan_hit_tokens, 28) << "plans are those of the text, whatever ran it";
    EXPECT_EQ(run.core.Stats().first_violation, "");
  }
}

TEST(Equality, ADenseModelHasNoExperts) {
  Setting setting;
  setting.experts = 0;
  setting.kv_pages = 30;
  for (const std::string policy : {"chunked_fcfs", "outrider"}) {
    setting.policy = policy;
    const EngineStats stats = ExpectReferences(setting, RandomRequests(6, 16));
    EXPECT_EQ(stats.routed_tokens, 0);
    EXPECT_GT(stats.preemptions, 0);
  }
}

TEST(Equality, OthersEndAtAnyTime) {
  const std::vector<Request> requests = RandomRequests(7, 40);
  Setting setting;
  setting.policy = "outrider";
  setting.distinct_experts = 2;
  setting.kv_pages = 40;
  CoreRun run(OptionsOf(setting), ShapeOf(setting));
  std::mt19937_64 random(8);
  std::vector<bool> ended(requests.size());
  size_t submitted = 0;
  while (submitted < requests.size() || !run.core.Idle()) {
    if (submitted < requests.size() && random() % 2 == 0) run.Submit(requests[submitted++]);
    if (random() % 3 == 0 && submitted > 0) {
      const size_t victim = random() % submitted;
      if (victim % 2 == 0) run.core.End(victim + 1, Finish::kCancelled, "");
    }
    run.Steps(1);
  }
  int cancelled = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto expected = Reference(requests[i]);
    const test::Told& told = run.told[i + 1];
    ASSERT_EQ(told.finishes.size(), 1u);
    if (told.finishes[0] == Finish::kCancelled) {
      ++cancelled;
      ASSERT_LE(told.tokens.size(), expected.written.size());
      EXPECT_TRUE(std::equal(told.tokens.begin(), told.tokens.end(), expected.written.begin()));
    } else {
      EXPECT_EQ(told.tokens, expected.written);
    }
  }
  EXPECT_GT(cancelled, 5);
  EXPECT_EQ(run.core.Stats().first_violation, "");
  EXPECT_EQ(run.core.Stats().kv_pages_used, 0);
}

TEST(Equality, AHundredThousandCancelsLeakNothing) {
  Setting setting;
  setting.policy = "chunked_fcfs";
  setting.kv_pages = 64;
  EngineOptions options = OptionsOf(setting);
  options.self_check = EngineOptions::SelfCheck::kOff;
  CoreRun run(options, ShapeOf(setting));
  std::mt19937_64 random(9);
  StreamId last = 0;
  for (int i = 0; i < 100'000; ++i) {
    Request request;
    request.prompt.assign(1 + random() % 6, static_cast<int32_t>(random() % 40));
    request.max_tokens = 80;
    last = run.Submit(std::move(request));
    if (random() % 8 == 0) run.Steps(1);
    run.core.End(last - random() % std::min<StreamId>(last, 4), Finish::kCancelled, "");
    if (i % 20'000 == 0) {
      ASSERT_THAT(run.core.Violations(), testing::ElementsAre());
    }
    if (i % 64 == 0) run.core.EndAll(Finish::kCancelled, "");
    if (i % 1'000 == 0) run.told.clear();
  }
  run.core.EndAll(Finish::kCancelled, "");
  const EngineStats stats = run.core.Stats();
  EXPECT_EQ(stats.cancelled, 100'000);
  EXPECT_GT(stats.written_tokens, 1'000);
  EXPECT_EQ(stats.kv_pages_used, 0);
  EXPECT_THAT(run.core.Violations(), testing::ElementsAre());
}

}  // namespace
}  // namespace outrider::serve
