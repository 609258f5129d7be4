// What the core asks of the machine and of the router, and when.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "support/core_run.h"

namespace outrider::serve {
namespace {

using test::CoreRun;
using test::Counted;
using test::ExpectClean;
using test::FakeShape;
using test::Plain;
using test::Reference;
using test::TestOptions;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(CoreMachine, LogitsAreAskedForWhereSomebodyNeedsThem) {
  CoreRun run;
  Request drawn = Plain(Counted(5, 9), 4), told = Plain(Counted(6, 9), 4), penalised = Plain(Counted(7, 9), 4);
  drawn.sampling.temperature = 1;
  told.logprobs = 0;
  penalised.sampling.presence_penalty = 0.5;
  const Request plain = Plain(Counted(0, 9), 30);
  const StreamId first = run.Submit(plain);
  run.Steps(5);
  EXPECT_EQ(run.executor.passes, 5);
  EXPECT_EQ(run.executor.greedy_passes, 5);
  for (const Request& request : {drawn, told, penalised}) {
    const int64_t greedy = run.executor.greedy_passes;
    const StreamId beside = run.Submit(request);
    run.Steps(4);
    EXPECT_EQ(run.executor.greedy_passes, greedy);
    EXPECT_EQ(run.told[beside].finishes, std::vector{Finish::kLength});
    EXPECT_EQ(run.told[beside].tokens, Reference(request).written);
    run.Steps(1);
    EXPECT_EQ(run.executor.greedy_passes, greedy + 1);
  }
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_EQ(run.told[first].tokens, Reference(plain).written);
  ExpectClean(run);
}

TEST(CoreMachine, SeveralThreadsDrawFromLogitsAlone) {
  EngineOptions options = TestOptions();
  std::vector<int64_t> counts;
  options.for_each = [&](int64_t count, const auto& body) {
    counts.push_back(count);
    for (int64_t i = count - 1; i >= 0; --i) body(i);
  };
  CoreRun run(options);
  Request plain = Plain(Counted(0, 9), 2), drawn = plain;
  drawn.sampling = {.temperature = 1, .seed = 3};
  run.Submit(plain);
  run.Submit(plain);
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_THAT(counts, ElementsAre());
  const StreamId first = run.Submit(drawn);
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_THAT(counts, ElementsAre()) << "one alone";
  const StreamId second = run.Submit(drawn);
  run.Submit(plain);
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_THAT(counts, ElementsAre(2, 2));
  EXPECT_EQ(run.told[first].tokens, Reference(drawn).written);
  EXPECT_EQ(run.told[second].tokens, Reference(drawn).written);
  ExpectClean(run);
}

TEST(CoreMachine, LogitsThatAreNoNumbersEndTheRequest) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
    for (const double temperature : {0.0, 1.0}) {
      CoreRun run;
      Request request = Plain(Counted(0, 9), 30);
      request.sampling.temperature = temperature;
      const StreamId id = run.Submit(request);
      run.Steps(3);
      run.executor.bad_logit = bad;
      ASSERT_TRUE(run.ToTheEnd());
      EXPECT_EQ(run.told[id].finishes, std::vector{Finish::kError}) << bad << " at " << temperature;
      EXPECT_EQ(run.told[id].last.error,
                "E_LOGITS: token 12 of the text: a logit is infinite or not a number, expected finite ones");
      EXPECT_EQ(run.told[id].tokens.size(), 3U);
      ExpectClean(run);
    }
  }
}

TEST(CoreMachine, EchoedLogitsThatAreNoNumbersEndTheRequest) {
  CoreRun run;
  Request request = Plain(Counted(0, 9), 3);
  request.echo_logprobs = true;
  request.logprobs = 2;
  run.executor.bad_logit = std::numeric_limits<float>::quiet_NaN();
  const StreamId id = run.Submit(request);
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_EQ(run.told[id].last.error,
            "E_LOGITS: token 1 of the text: a logit is infinite or not a number, expected finite ones");
  ExpectClean(run);
}

// Two tokens of prompts a step here: a long prompt is routed in pieces, each before the chunk that needs it.
TEST(CoreMachine, LongPromptsAreRoutedInPieces) {
  EngineOptions options = TestOptions();
  options.limits.prefill_tokens = 1;
  CoreRun run(options);
  const StreamId first = run.Submit(Plain(Counted(0, 3), 60));
  run.Steps(3);
  EXPECT_EQ(run.told[first].tokens.size(), 1U);
  int64_t routed = run.core.Stats().routed_tokens;
  const StreamId second = run.Submit(Plain(Counted(3, 40), 5));
  for (int step = 0; step < 10; ++step) {
    run.Steps(1);
    EXPECT_EQ(run.core.Stats().routed_tokens - routed, 3) << "two of the prompt, and what was written";
    routed += 3;
  }
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_EQ(run.told[first].tokens, Reference(Plain(Counted(0, 3), 60)).written);
  EXPECT_EQ(run.told[second].tokens, Reference(Plain(Counted(3, 40), 5)).written);
  EXPECT_EQ(run.told[second].experts, Reference(Plain(Counted(3, 40), 5)).experts);
  ExpectClean(run);
}

TEST(CoreMachine, PromptsOfHighPriorityAreRoutedFirst) {
  EngineOptions options = TestOptions();
  options.limits.prefill_tokens = 4;
  CoreRun run(options);
  Request urgent = Plain(Counted(3, 8), 5);
  urgent.priority = 1;
  run.Submit(Plain(Counted(0, 40), 5));
  const StreamId second = run.Submit(urgent);
  run.Steps(2);
  EXPECT_EQ(run.told[second].tokens.size(), 1U) << "eight tokens are routed a step, four run";
  EXPECT_EQ(run.core.Stats().routed_tokens, 8 + 8 + 1);
  EXPECT_EQ(run.core.Stats().prompt_steps, 2);
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_EQ(run.told[second].tokens, Reference(urgent).written);
  ExpectClean(run);
}

TEST(CoreMachine, AFailureInALaterPieceOfAPromptEndsItAlone) {
  for (const bool throws : {false, true}) {
    EngineOptions options = TestOptions();
    options.limits.prefill_tokens = 4;
    CoreRun run(options);
    const StreamId first = run.Submit(Plain(Counted(0, 3), 40));
    run.Steps(1);
    const StreamId second = run.Submit(Plain(Counted(3, 30), 5));
    run.Steps(1);
    run.pregate.fails_of = 8;
    run.pregate.throws = throws;
    run.Steps(1);
    EXPECT_THAT(run.told[second].finishes, ElementsAre(Finish::kError));
    EXPECT_EQ(run.told[second].last.error,
              throws ? "E_INTERNAL: the router: told to throw" : "E_FAKE_ROUTER: the router failed as told");
    ASSERT_TRUE(run.ToTheEnd());
    EXPECT_EQ(run.told[first].tokens, Reference(Plain(Counted(0, 3), 40)).written);
    ExpectClean(run);
  }
}

TEST(CoreMachine, ALostRouterIsTheEndOfAll) {
  for (const int64_t tokens : {9, 2}) {  // of a prompt, of what both drew
    CoreRun run;
    const StreamId first = run.Submit(Plain(Counted(0, 6), 30));
    run.Steps(2);
    run.pregate.code = "E_DEVICE";
    run.pregate.fails_of = tokens;
    const StreamId second = run.Submit(Plain(Counted(3, 9), 5));
    run.Steps(2);
    EXPECT_EQ(run.core.Stats().device_error, "E_DEVICE: the router failed as told") << tokens;
    EXPECT_TRUE(run.core.Idle());
    for (const StreamId id : {first, second}) EXPECT_THAT(run.told[id].finishes, ElementsAre(Finish::kError)) << tokens;
    ExpectClean(run);
  }
}

TEST(CoreMachine, PassesOfPromptsAreTimedWhereTheyAreApart) {
  for (const bool apart : {false, true}) {
    ModelShape shape = FakeShape();
    shape.prompts_apart = apart;
    CoreRun run(TestOptions(), shape);
    for (int i = 0; i < 3; ++i) {
      run.Submit(Plain(Counted(i, 6 + i), 4));
      ASSERT_TRUE(run.ToTheEnd());
    }
    const EngineStats stats = run.core.Stats();
    EXPECT_EQ(stats.prompt_steps, 3);
    EXPECT_DOUBLE_EQ(stats.prompt_pass_s, apart ? 3 * 6e-6 : 0);
    EXPECT_NEAR(stats.step_fit.setup_s, apart ? 6e-6 : 0, 1e-9) << "of 6 tokens as of 8";
  }
}

TEST(CoreMachine, AFailureOfTheRouterEndsThoseItRouted) {
  CoreRun run;
  const StreamId a = run.Submit(Plain(Counted(0, 9), 9));
  run.Steps(2);
  run.pregate.fails = true;
  const StreamId b = run.Submit(Plain(Counted(5, 9), 9));
  run.Steps(1);
  EXPECT_THAT(run.told[a].finishes, ElementsAre(Finish::kError));
  EXPECT_THAT(run.told[b].finishes, ElementsAre(Finish::kError));
  EXPECT_THAT(run.told[b].last.error, HasSubstr("E_FAKE_ROUTER"));
  run.pregate.fails = false;
  const StreamId c = run.Submit(Plain(Counted(5, 9), 9));
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_EQ(run.told[c].tokens, Reference(Plain(Counted(5, 9), 9)).written);
  ExpectClean(run);
}

}  // namespace
}  // namespace outrider::serve
