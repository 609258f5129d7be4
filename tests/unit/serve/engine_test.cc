#include "serve/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <chrono>
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
  EXPECT_EQ(stats.plan_checked, 16);
  EXPECT_EQ(stats.open_streams, 0);
}

}  // namespace
}  // namespace outrider::serve
