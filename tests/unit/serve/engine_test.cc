#include "serve/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "support/serve_support.h"

namespace outrider::serve {
namespace {

using base::Deadline;
using test::Collect;
using test::FakeExecutor;
using test::FakePregate;
using test::Reference;
using test::ToldStreams;

std::unique_ptr<Engine> MakeEngine(const EngineOptions& options, const ModelShape& shape = test::FakeShape()) {
  std::unique_ptr<Pregate> pregate;
  if (shape.experts > 0) pregate = std::make_unique<FakePregate>(shape);
  auto made = Engine::Make(std::make_unique<FakeExecutor>(shape), std::move(pregate), options);
  EXPECT_TRUE(made.has_value()) << made.error().message;
  return std::move(*made);
}

Request Plain(std::vector<int32_t> prompt, int64_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

ToldStreams WaitFor(Engine& engine, size_t finishes) {
  ToldStreams told;
  const Deadline deadline = Deadline::AfterMs(20'000);
  size_t seen = 0;
  while (seen < finishes && !deadline.Expired()) {
    pollfd wait{engine.event_fd(), POLLIN, 0};
    poll(&wait, 1, 100);
    auto events = engine.Poll(8);
    for (const Event& event : events) seen += event.finish != Finish::kNone ? 1 : 0;
    Collect(told, std::move(events));
  }
  return told;
}

TEST(Engine, WritesTheTextOfTheMachine) {
  auto engine = MakeEngine(test::TestOptions());
  Request request = Plain({1, 2, 3, 4, 5}, 12);
  const auto expected = Reference(request);
  const auto id = engine->Submit(request);
  ASSERT_TRUE(id.has_value());
  const ToldStreams told = WaitFor(*engine, 1);
  ASSERT_EQ(told.size(), 1u);
  const test::Told& stream = told.at(*id);
  EXPECT_EQ(stream.tokens, expected.written);
  EXPECT_EQ(stream.experts, expected.experts);
  EXPECT_THAT(stream.finishes, testing::ElementsAre(Finish::kLength));
  EXPECT_EQ(stream.last.prompt_tokens, 5);
  EXPECT_EQ(stream.last.written_tokens, 12);
  EXPECT_TRUE(engine->WaitIdle(Deadline::AfterMs(5'000)));
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.first_violation, "");
  EXPECT_EQ(stats.plan_mismatches, 0);
  EXPECT_EQ(stats.plan_checked, 17);
  EXPECT_EQ(stats.open_streams, 0);
}

TEST(Engine, RefusesWhatCannotBeServed) {
  EngineOptions options = test::TestOptions();
  auto engine = MakeEngine(options);
  const auto code = [&engine](const std::function<void(Request&)>& change) {
    Request request = Plain({1, 2, 3}, 5);
    change(request);
    const auto id = engine->Submit(std::move(request));
    return id ? std::string("accepted") : id.error().error.code;
  };
  EXPECT_EQ(code([](Request& r) { r.prompt.clear(); }), "E_REQUEST");
  EXPECT_EQ(code([](Request& r) { r.prompt = {40}; }), "E_REQUEST");
  EXPECT_EQ(code([](Request& r) { r.prompt = {-1}; }), "E_REQUEST");
  EXPECT_EQ(code([](Request& r) { r.max_tokens = -1; }), "E_REQUEST");
  EXPECT_EQ(code([](Request& r) { r.sampling.temperature = -0.5; }), "E_REQUEST");
  EXPECT_EQ(code([](Request& r) { r.sampling.temperature = std::nan(""); }), "E_REQUEST");
  EXPECT_EQ(code([](Request& r) { r.sampling.top_p = 0; }), "E_REQUEST");
  EXPECT_EQ(code([](Request& r) { r.sampling.repetition_penalty = 0; }), "E_REQUEST");
  EXPECT_EQ(code([](Request& r) { r.priority = 2; }), "E_REQUEST");
  EXPECT_EQ(code([](Request& r) { r.logprobs = 21; }), "E_REQUEST");
  EXPECT_EQ(code([](Request& r) { r.prompt.assign(96, 1); }), "E_CONTEXT");
  EXPECT_EQ(code([](Request& r) { r.max_tokens = 94; }), "E_CONTEXT");
  EXPECT_EQ(code([](Request& r) { r.max_tokens = 93; }), "accepted");
  EXPECT_TRUE(engine->Drain(Deadline::AfterMs(10'000)));
  EXPECT_EQ(code([](Request&) {}), "E_DRAINING");
  EXPECT_EQ(engine->Stats().rejected.at("E_REQUEST"), 10);
}

TEST(Engine, RefusesOptionsItCannotHonour) {
  const auto code = [](const std::function<void(EngineOptions&)>& change) {
    EngineOptions options = test::TestOptions();
    change(options);
    auto made = Engine::Make(std::make_unique<FakeExecutor>(), std::make_unique<FakePregate>(), options);
    return made ? std::string("made") : made.error().code;
  };
  EXPECT_EQ(code([](EngineOptions& o) { o.policy = nullptr; }), "E_OPTION");
  EXPECT_EQ(code([](EngineOptions& o) { o.limits.prefill_tokens = 49; }), "E_OPTION");
  EXPECT_EQ(code([](EngineOptions& o) { o.limits.decode_tokens = 0; }), "E_OPTION");
  EXPECT_EQ(code([](EngineOptions& o) { o.text_tokens_max = 97; }), "E_OPTION");
  EXPECT_EQ(code([](EngineOptions& o) { o.running_max = 0; }), "E_OPTION");
  EXPECT_EQ(code([](EngineOptions& o) { o.tokens_admitted_max = 50; }), "E_OPTION");
  EXPECT_EQ(code([](EngineOptions&) {}), "made");
}

TEST(Engine, CapsHoldAndTellWhenToComeBack) {
  EngineOptions options = test::TestOptions();
  options.running_max = 1;
  options.queued_max = 2;
  std::atomic<bool> go = false;
  options.policy = [&go](const sched::Snapshot& snapshot) {
    while (!go) std::this_thread::yield();
    return sched::PlanChunkedFcfs(snapshot);
  };
  auto engine = MakeEngine(options);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(engine->Submit(Plain({1, 2}, 3)).has_value());
  const auto refused = engine->Submit(Plain({1, 2}, 3));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().error.code, "E_BUSY");
  EXPECT_GE(refused.error().retry_after_s, 1);
  EXPECT_EQ(engine->Stats().tokens_admitted, 15);
  go = true;
  EXPECT_EQ(WaitFor(*engine, 3).size(), 3u);
  EXPECT_TRUE(engine->Submit(Plain({1, 2}, 3)).has_value());
}

Request Of(Tenant tenant, Request request) {
  request.tenant = std::move(tenant);
  return request;
}

TEST(Engine, CapsOfATenantHoldForItAlone) {
  EngineOptions options = test::TestOptions();
  std::atomic<bool> go = false;
  options.policy = [&go](const sched::Snapshot& snapshot) {
    while (!go) std::this_thread::yield();
    return sched::PlanChunkedFcfs(snapshot);
  };
  auto engine = MakeEngine(options);
  const auto code = [&engine](const Tenant& tenant, int64_t max_tokens) {
    const auto id = engine->Submit(Of(tenant, Plain({1, 2}, max_tokens)));
    if (id) return std::string("accepted");
    EXPECT_EQ(id.error().error.code == "E_TENANT", id.error().retry_after_s >= 1);
    return id.error().error.code;
  };
  const Tenant two{"two", 2, 0, ""}, ten{"ten", 0, 10, ""};
  EXPECT_EQ(code(two, 3), "accepted");
  EXPECT_EQ(code(two, 3), "accepted");
  EXPECT_EQ(code(two, 3), "E_TENANT");
  EXPECT_EQ(code(ten, 3), "accepted");
  EXPECT_EQ(code(ten, 4), "E_TENANT");
  EXPECT_EQ(code(ten, 3), "accepted");
  EXPECT_EQ(code(ten, 9), "E_CONTEXT") << "it alone is more than the tenant may ever have";
  EXPECT_EQ(code({"free", 0, 0, ""}, 9), "accepted");
  EXPECT_EQ(code({"bad", -1, 0, ""}, 9), "E_REQUEST");
  go = true;
  EXPECT_EQ(WaitFor(*engine, 5).size(), 5u);
  EXPECT_EQ(code(two, 3), "accepted");
  EXPECT_EQ(code(ten, 0), "accepted") << "without max_tokens: as long as the tenant may";
  const ToldStreams told = WaitFor(*engine, 2);
  EXPECT_EQ(told.rbegin()->second.last.written_tokens, 8);
}

TEST(Engine, TextsOfOneSaltAloneShareTheirPrefix) {
  auto engine = MakeEngine(test::TestOptions());
  const std::vector<int32_t> prompt(40, 7);
  const auto cached = [&](const std::string& name, const std::string& salt) {
    const Request request = Of({name, 0, 0, salt}, Plain(prompt, 3));
    const auto id = engine->Submit(request);
    const ToldStreams told = WaitFor(*engine, 1);
    EXPECT_EQ(told.at(*id).tokens, Reference(request).written);
    return told.at(*id).last.cached_tokens;
  };
  EXPECT_EQ(cached("a", "a"), 0);
  const int64_t shared = cached("a", "a");
  EXPECT_GT(shared, 0);
  EXPECT_EQ(cached("b", "b"), 0);
  EXPECT_EQ(cached("b", ""), 0);
  EXPECT_EQ(cached("c", "b"), shared);
  EXPECT_TRUE(engine->WaitIdle(Deadline::AfterMs(5'000)));
  EXPECT_EQ(engine->Stats().first_violation, "");
}

TEST(Engine, StreamsThatNobodyReadsAreBounded) {
  EngineOptions options = test::TestOptions();
  options.streams_max = 3;
  auto engine = MakeEngine(options);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(engine->Submit(Plain({1, 2}, 3)).has_value());
  EXPECT_TRUE(engine->WaitIdle(Deadline::AfterMs(10'000)));
  EXPECT_FALSE(engine->Submit(Plain({1, 2}, 3)).has_value());
  EXPECT_EQ(engine->Poll(1).size(), 1u);
  EXPECT_TRUE(engine->Submit(Plain({1, 2}, 3)).has_value());
}

TEST(Engine, ASlowReaderIsCancelled) {
  EngineOptions options = test::TestOptions();
  options.buffered_tokens_max = 10;
  auto engine = MakeEngine(options);
  const auto id = engine->Submit(Plain({1, 2}, 50));
  EXPECT_TRUE(engine->WaitIdle(Deadline::AfterMs(10'000)));
  const std::vector<Event> events = engine->Poll(8);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].stream, *id);
  EXPECT_EQ(events[0].finish, Finish::kCancelled);
  EXPECT_EQ(events[0].tokens.size(), 10u);
  EXPECT_EQ(engine->Stats().slow_readers, 1);
}

TEST(Engine, DrainCancelsWhatIsLeft) {
  EngineOptions options = test::TestOptions();
  options.policy = [](const sched::Snapshot& snapshot) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return sched::PlanChunkedFcfs(snapshot);
  };
  auto engine = MakeEngine(options);
  const auto id = engine->Submit(Plain({1, 2}, 90));
  EXPECT_FALSE(engine->Drain(Deadline::AfterMs(30)));
  EXPECT_TRUE(engine->WaitIdle(Deadline::AfterMs(0)));
  const ToldStreams told = WaitFor(*engine, 1);
  EXPECT_EQ(told.at(*id).last.finish, Finish::kCancelled);
  EXPECT_THAT(told.at(*id).last.error, testing::HasSubstr("E_DRAINING"));
}

TEST(Engine, CloseEndsEveryStreamOnce) {
  auto engine = MakeEngine(test::TestOptions());
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(engine->Submit(Plain({1, 2}, 90)).has_value());
  engine->Close();
  engine->Close();
  const ToldStreams told = WaitFor(*engine, 20);
  EXPECT_EQ(told.size(), 20u);
  for (const auto& [id, stream] : told) EXPECT_EQ(stream.finishes.size(), 1u);
  EXPECT_FALSE(engine->Submit(Plain({1, 2}, 3)).has_value());
  EXPECT_TRUE(engine->WaitIdle(Deadline::AfterMs(0)));
}

TEST(Engine, AThrowingPolicyFailsItsRequestsAlone) {
  EngineOptions options = test::TestOptions();
  options.policy = [](const sched::Snapshot& snapshot) {
    if (snapshot.step == 2) throw std::bad_alloc();
    return sched::PlanChunkedFcfs(snapshot);
  };
  auto engine = MakeEngine(options);
  const auto first = engine->Submit(Plain({1, 2}, 50));
  ToldStreams told = WaitFor(*engine, 1);
  EXPECT_EQ(told.at(*first).last.finish, Finish::kError);
  EXPECT_THAT(told.at(*first).last.error, testing::HasSubstr("E_INTERNAL"));
  EXPECT_TRUE(engine->WaitIdle(Deadline::AfterMs(10'000)));
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

// Several threads submit and cancel, one reads.
TEST(Engine, ALostMachineTakesNoMoreRequests) {
  const ModelShape shape = test::FakeShape();
  auto executor = std::make_unique<FakeExecutor>(shape);
  executor->fails = true;
  executor->code = "E_DEVICE";
  auto engine = *Engine::Make(std::move(executor), std::make_unique<FakePregate>(shape), test::TestOptions());
  ASSERT_TRUE(engine->Submit(Plain({1, 2, 3}, 4)).has_value());
  const ToldStreams told = WaitFor(*engine, 1);
  EXPECT_EQ(told.at(1).last.finish, Finish::kError);
  ASSERT_TRUE(engine->WaitIdle(Deadline::AfterMs(20'000)));
  EXPECT_EQ(engine->Stats().device_error, "E_DEVICE: the machine failed as told");
  const auto refused = engine->Submit(Plain({1, 2, 3}, 4));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().error.code, "E_DEVICE");
}

TEST(Engine, ManyThreads) {
  EngineOptions options = test::TestOptions();
  options.running_max = 8;
  options.queued_max = 24;
  ModelShape shape = test::FakeShape();
  shape.kv_pages = 48;
  auto engine = MakeEngine(options, shape);
  std::mutex mutex;
  std::map<StreamId, Request> sent;  // guarded by mutex
  std::atomic<int> writers = 3;
  const auto write = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int i = 0; i < 60;) {
      const Request request = test::RandomRequest(random);
      const std::lock_guard lock(mutex);
      if (const auto id = engine->Submit(request)) {
        sent.emplace(*id, request);
        if (random() % 4 == 0) engine->Cancel(*id - random() % 3);
        ++i;
      } else {
        EXPECT_EQ(id.error().error.code, "E_BUSY");
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
    }
    --writers;
  };
  std::vector<std::thread> threads;
  for (uint64_t seed = 1; seed <= 3; ++seed) threads.emplace_back(write, seed);
  ToldStreams told;
  const Deadline deadline = Deadline::AfterMs(60'000);
  while (!deadline.Expired()) {
    Collect(told, engine->Poll(4));
    if (writers == 0 && engine->WaitIdle(Deadline::AfterMs(0))) break;
    static_cast<void>(engine->Stats());
    std::this_thread::yield();
  }
  for (std::thread& thread : threads) thread.join();
  Collect(told, engine->Poll(1'000'000));
  ASSERT_EQ(told.size(), sent.size());
  EXPECT_EQ(sent.size(), 180u);
  for (const auto& [id, request] : sent) {
    const auto expected = Reference(request);
    const test::Told& stream = told.at(id);
    ASSERT_EQ(stream.finishes.size(), 1u);
    if (stream.finishes[0] == Finish::kCancelled) continue;
    EXPECT_EQ(stream.tokens, expected.written);
    EXPECT_EQ(stream.finishes[0], expected.finish);
  }
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.first_violation, "");
  EXPECT_EQ(stats.plan_mismatches, 0);
  EXPECT_EQ(stats.kv_pages_used, 0);
  EXPECT_EQ(stats.open_streams, 0);
  EXPECT_EQ(stats.tokens_admitted, 0);
}

}  // namespace
}  // namespace outrider::serve
