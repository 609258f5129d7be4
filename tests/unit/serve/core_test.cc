#include "serve/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

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

TEST(Core, CancelFreesWithinAStep) {
  CoreRun run;
  const StreamId a = run.Submit(Plain(Counted(0, 9), 30)), b = run.Submit(Plain(Counted(3, 9), 5));
  run.Steps(3);
  run.core.End(a, Finish::kCancelled, "");
  EXPECT_EQ(run.core.Stats().running, 1);
  ExpectClean(run);
  EXPECT_THAT(run.told[a].finishes, ElementsAre(Finish::kCancelled));
  run.core.End(a, Finish::kCancelled, "");
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_THAT(run.told[a].finishes, ElementsAre(Finish::kCancelled)) << "told twice";
  EXPECT_EQ(run.told[b].tokens, Reference(Plain(Counted(3, 9), 5)).written);
  ExpectClean(run);
}

TEST(Core, DeadlinesPassInTheQueueAndWhileRunning) {
  EngineOptions options = TestOptions();
  options.running_max = 1;
  CoreRun run(options);
  Request hurried = Plain(Counted(0, 9), 30), patient = Plain(Counted(1, 9), 3);
  hurried.deadline_ms = 50;
  const StreamId running = run.Submit(hurried), queued = run.Submit(hurried), last = run.Submit(patient);
  run.Steps(3);
  EXPECT_EQ(run.core.Stats().queued, 2);
  run.now_ns += 49'999'999;
  run.Steps(1);
  EXPECT_TRUE(run.told[running].finishes.empty());
  run.now_ns += 1;
  run.Steps(1);
  EXPECT_THAT(run.told[running].finishes, ElementsAre(Finish::kDeadline));
  EXPECT_THAT(run.told[queued].finishes, ElementsAre(Finish::kDeadline));
  EXPECT_EQ(run.told[running].last.written_tokens, 4);
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_EQ(run.told[last].tokens, Reference(patient).written);
  EXPECT_EQ(run.core.Stats().deadline, 2);
  ExpectClean(run);
}

TEST(Core, AFailureOfTheMachineEndsItsStepAlone) {
  EngineOptions options = TestOptions();
  options.limits.decode_tokens = 2;
  CoreRun run(options);
  std::vector<StreamId> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(run.Submit(Plain(Counted(i, 6), 6)));
  run.Steps(2);
  run.executor.fails = true;
  run.Steps(1);
  run.executor.fails = false;
  ASSERT_TRUE(run.ToTheEnd());
  int failed = 0;
  for (int i = 0; i < 4; ++i) {
    const test::Told& told = run.told[ids[static_cast<size_t>(i)]];
    if (told.finishes == std::vector{Finish::kError}) {
      ++failed;
      EXPECT_THAT(told.last.error, HasSubstr("E_FAKE"));
    } else {
      EXPECT_EQ(told.tokens, Reference(Plain(Counted(i, 6), 6)).written);
    }
  }
  EXPECT_EQ(failed, 2);
  EXPECT_EQ(run.core.Stats().failed_steps, 1);
  // What the failed step left in its pages is in no cache.
  const StreamId again = run.Submit(Plain(Counted(0, 6), 6));
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_EQ(run.told[again].tokens, Reference(Plain(Counted(0, 6), 6)).written);
  ExpectClean(run);
}

TEST(Core, ALostMachineEndsEveryone) {
  EngineOptions options = TestOptions();
  options.limits.decode_tokens = 2;
  options.running_max = 3;
  CoreRun run(options);
  for (int i = 0; i < 5; ++i) run.Submit(Plain(Counted(i, 6), 6));
  run.Steps(2);
  EXPECT_EQ(run.core.Stats().device_error, "");
  run.executor.fails = true;
  run.executor.code = "E_DEVICE";
  run.Steps(2);
  EXPECT_TRUE(run.core.Idle());
  for (StreamId id = 1; id <= 5; ++id) {
    EXPECT_THAT(run.told[id].finishes, ElementsAre(Finish::kError));
    EXPECT_EQ(run.told[id].last.error, "E_DEVICE: the machine failed as told");
  }
  EXPECT_EQ(run.core.Stats().device_error, "E_DEVICE: the machine failed as told");
  const int64_t passes = run.executor.passes;
  const StreamId late = run.Submit(Plain(Counted(0, 6), 6));
  run.Steps(1);
  EXPECT_THAT(run.told[late].finishes, ElementsAre(Finish::kError));
  EXPECT_EQ(run.executor.passes, passes) << "it is not tried again";
  ExpectClean(run);
}

TEST(Core, APolicyThatPlansNonsenseIsRefused) {
  using sched::Lane;
  const std::vector<std::function<void(sched::StepPlan&)>> mistakes = {
      [](sched::StepPlan& plan) { plan.slices.clear(); },
      [](sched::StepPlan& plan) { plan.slices.push_back(plan.slices.front()); },
      [](sched::StepPlan& plan) { plan.slices.front().tokens = 1000; },
      [](sched::StepPlan& plan) { plan.slices.front().tokens = 0; },
      [](sched::StepPlan& plan) { plan.slices.front().request = sched::RequestId(77); },
      [](sched::StepPlan& plan) { plan.slices.front().lane = Lane::kDecode; },
  };
  for (const auto& mistake : mistakes) {
    EngineOptions options = TestOptions();
    options.policy = [&](const sched::Snapshot& snapshot) {
      sched::StepPlan plan = sched::PlanChunkedFcfs(snapshot);
      mistake(plan);
      return plan;
    };
    CoreRun run(options);
    const StreamId id = run.Submit(Plain(Counted(0, 9), 4));
    run.Steps(1);
    EXPECT_THAT(run.told[id].finishes, ElementsAre(Finish::kError));
    EXPECT_THAT(run.told[id].last.error, HasSubstr("E_PLAN"));
    EXPECT_EQ(run.executor.passes, 0);
    ExpectClean(run);
  }
}

TEST(Core, ASlowReaderIsCancelled) {
  CoreRun run;
  const StreamId id = run.Submit(Plain(Counted(0, 4), 20));
  run.Steps(2);
  run.refuse_events = true;
  run.Steps(1);
  EXPECT_THAT(run.told[id].finishes, ElementsAre(Finish::kCancelled));
  EXPECT_THAT(run.told[id].last.error, HasSubstr("E_SLOW_READER"));
  EXPECT_EQ(run.core.Stats().slow_readers, 1);
  EXPECT_TRUE(run.core.Idle());
  ExpectClean(run);
}

TEST(Core, APrefixIsNeitherComputedNorRoutedAgain) {
  CoreRun run;
  const Request first = Plain(Counted(0, 18), 4);
  run.Submit(first);
  ASSERT_TRUE(run.ToTheEnd());
  const EngineStats before = run.core.Stats();
  Request second = first;
  second.prompt.push_back(39);
  const StreamId id = run.Submit(second);
  ASSERT_TRUE(run.ToTheEnd());
  const EngineStats after = run.core.Stats();
  EXPECT_EQ(run.told[id].last.cached_tokens, 16);
  EXPECT_EQ(after.prefix_hit_tokens, 16);
  EXPECT_EQ(after.plan_hit_tokens, 16);
  EXPECT_EQ(after.prefill_tokens - before.prefill_tokens, 3);
  EXPECT_EQ(run.told[id].tokens, Reference(second).written);
  EXPECT_EQ(run.told[id].experts, Reference(second).experts);
  EXPECT_GT(after.kv_pages_cached, 4);
  ExpectClean(run);
}

TEST(Core, HighPriorityEntersFirstAndLowPriorityAges) {
  EngineOptions options = TestOptions();
  options.running_max = 1;
  options.priority_age_steps = 30;
  CoreRun run(options);
  Request low = Plain(Counted(0, 5), 10), high = Plain(Counted(1, 5), 10);
  high.priority = 1;
  run.Submit(low);
  run.Steps(1);
  const StreamId aged = run.Submit(low), preferred = run.Submit(high);
  std::vector<StreamId> more;
  for (int i = 0; i < 6; ++i) more.push_back(run.Submit(high));
  while (run.told[preferred].finishes.empty()) run.Steps(1);
  EXPECT_TRUE(run.told[aged].tokens.empty());
  while (run.told[aged].finishes.empty()) run.Steps(1);
  EXPECT_TRUE(run.told[more.back()].tokens.empty()) << "the low class starved";
  ASSERT_TRUE(run.ToTheEnd());
}

TEST(Core, PromptLogprobsComeInOrderWhateverTheCuts) {
  Request request = Plain(Counted(0, 21), 2);
  request.logprobs = 2;
  request.echo_logprobs = true;
  std::vector<TokenLogprob> expected;
  for (const auto& [prefill, rows] : {std::pair{48, 64}, std::pair{48, 3}, std::pair{5, 64}, std::pair{1, 1}}) {
    EngineOptions options = TestOptions();
    options.limits.prefill_tokens = prefill;
    options.echo_rows_max = rows;
    CoreRun run(options);
    run.Submit(Plain(Counted(0, 21), 2));  // leaves its pages to the other, which must not take them
    ASSERT_TRUE(run.ToTheEnd());
    const StreamId id = run.Submit(request);
    ASSERT_TRUE(run.ToTheEnd());
    const std::vector<TokenLogprob>& found = run.told[id].logprobs;
    ASSERT_EQ(found.size(), 22u);
    if (expected.empty()) expected = found;
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_EQ(found[i].token, i < 20 ? request.prompt[i + 1] : run.told[id].tokens[i - 20]);
      EXPECT_EQ(found[i].logprob, expected[i].logprob);
      EXPECT_EQ(found[i].top, expected[i].top);
      EXPECT_EQ(found[i].top.size(), 2u);
    }
    EXPECT_EQ(found.back().top.front().first, found.back().token) << "greedy takes the most likely";
    ExpectClean(run);
  }
}

TEST(Core, AStopIdEndsTheTextAndIsNotTold) {
  Request request = Plain(Counted(0, 5), 30);
  const auto whole = Reference(request);
  request.stop_ids = {whole.written[6]};
  CoreRun run;
  const StreamId id = run.Submit(request);
  ASSERT_TRUE(run.ToTheEnd());
  const auto expected = Reference(request);
  EXPECT_EQ(run.told[id].tokens, expected.written);
  EXPECT_EQ(run.told[id].tokens.size(), 6u);
  EXPECT_EQ(run.told[id].experts.size(), 11u);
  EXPECT_THAT(run.told[id].finishes, ElementsAre(Finish::kStop));
  EXPECT_EQ(run.told[id].last.written_tokens, static_cast<int64_t>(expected.written.size()));
}

TEST(Core, ATextEndsWithTheContext) {
  CoreRun run;
  const StreamId id = run.Submit(Plain(Counted(0, 90), 0));
  ASSERT_TRUE(run.ToTheEnd());
  EXPECT_EQ(run.told[id].tokens, Reference(Plain(Counted(0, 90), 0)).written);
  EXPECT_EQ(run.told[id].tokens.size(), 6u);
  EXPECT_THAT(run.told[id].finishes, ElementsAre(Finish::kLength));
}

// The n-th page that is asked for is refused, for each n in turn.
TEST(Core, APageThatIsRefusedChangesNothingButTime) {
  int64_t preemptions = 0;
  std::vector<Request> requests;
  for (int i = 0; i < 3; ++i) requests.push_back(Plain(Counted(i * 3, 7 + 4 * i), 9));
  int64_t asked = 1'000;
  for (int64_t n = 1; n <= asked; ++n) {
    int64_t count = 0;
    EngineOptions options = TestOptions();
    options.page_fault = [&count, n] { return ++count == n; };
    CoreRun run(options);
    for (const Request& request : requests) run.Submit(request);
    ASSERT_TRUE(run.ToTheEnd(1'000)) << "refusal " << n;
    for (size_t i = 0; i < requests.size(); ++i)
      ASSERT_EQ(run.told[i + 1].tokens, Reference(requests[i]).written) << "refusal " << n << ", request " << i;
    ExpectClean(run);
    preemptions += run.core.Stats().preemptions;
    if (count < n) asked = n;
  }
  EXPECT_LT(asked, 1'000);
  EXPECT_GT(asked, 10);
  EXPECT_GT(preemptions, 5);
}

}  // namespace
}  // namespace outrider::serve
