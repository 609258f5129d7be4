#include "serve/admission.h"

#include <gtest/gtest.h>

namespace outrider::serve {
namespace {

struct Asking {
  EngineOptions options;
  EngineStats stats;
  Admitted admitted;
  Request request;

  // 100 prompt tokens a second and 200 of them waiting; steps of a tenth of a second.
  Asking() {
    options.tokens_admitted_max = 100'000;
    options.limits = {.decode_tokens = 32, .prefill_tokens = 64, .age_max = 64, .prompt_hold_max = 16};
    stats.prefill_tokens_per_s = 100;
    stats.backlog_prompt_tokens = 200;
    stats.step_p95_s = 0.1;
    admitted.total.requests = 33;
    request.prompt.assign(100, 1);
    request.max_tokens = 10;
  }

  // The code of the refusal, or none.
  std::string Code() const {
    const auto found = CheckCaps(request, 110, admitted, stats, options);
    return found ? "" : found.error().error.code;
  }
};

// (200 + 100) / 100 s, and two chunks that may be held 16 steps of 0.1 s each.
TEST(Admission, TheFirstTokenMayBeHeldOncePerChunk) {
  Asking asking;
  asking.request.deadline_ms = 6'199;
  EXPECT_EQ(asking.Code(), "E_BUSY");
  asking.request.deadline_ms = 6'201;
  EXPECT_EQ(asking.Code(), "");
}

TEST(Admission, NothingIsHeldWhileAllThatRunFitAStepOrThePolicyHoldsNothing) {
  Asking asking;
  asking.request.deadline_ms = 3'001;
  EXPECT_EQ(asking.Code(), "E_BUSY");
  asking.admitted.total.requests = 32;
  EXPECT_EQ(asking.Code(), "");
  asking.admitted.total.requests = 33;
  asking.options.limits.prompt_hold_max = 0;
  EXPECT_EQ(asking.Code(), "");
}

// As long as a pass of 0.05 s costs ten texts, but no longer than 16 steps of 0.1 s; nothing without holding.
TEST(Admission, APromptMayWaitForOthersThatShareItsPass) {
  Asking asking;
  asking.admitted.total.requests = 11;
  asking.stats.writing = 10;
  asking.stats.step_fit.setup_s = 0.05;
  asking.request.deadline_ms = 3'499;
  EXPECT_EQ(asking.Code(), "E_BUSY");
  asking.request.deadline_ms = 3'501;
  EXPECT_EQ(asking.Code(), "");
  asking.stats.step_fit.setup_s = 1;
  asking.request.deadline_ms = 4'599;
  EXPECT_EQ(asking.Code(), "E_BUSY");
  asking.request.deadline_ms = 4'601;
  EXPECT_EQ(asking.Code(), "");
  asking.options.limits.prompt_hold_max = 0;
  asking.request.deadline_ms = 3'001;
  EXPECT_EQ(asking.Code(), "");
}

TEST(Admission, AGoalForTheFirstTokenIsADeadlineOfIt) {
  Asking asking;
  asking.options.ttft_goal_ms = 6'199;
  EXPECT_EQ(asking.Code(), "E_BUSY");
  asking.options.ttft_goal_ms = 6'201;
  EXPECT_EQ(asking.Code(), "");
  asking.request.deadline_ms = 3'000;
  EXPECT_EQ(asking.Code(), "E_BUSY") << "the earlier of both counts";
  asking.options.ttft_goal_ms = 3'000;
  asking.request.deadline_ms = 60'000;
  EXPECT_EQ(asking.Code(), "E_BUSY");
  asking.stats.prefill_tokens_per_s = 0;
  EXPECT_EQ(asking.Code(), "") << "nothing is measured yet";
}

TEST(Admission, AnIdleEngineTakesWhatWillMissItsGoal) {
  Asking asking;
  asking.stats.backlog_prompt_tokens = 0;
  asking.admitted.total.requests = 0;
  asking.options.ttft_goal_ms = 10;
  EXPECT_EQ(asking.Code(), "");
  asking.request.deadline_ms = 10;
  EXPECT_EQ(asking.Code(), "E_BUSY") << "a deadline of its own is another matter";
  asking.request.deadline_ms = 0;
  asking.admitted.total.requests = 1;
  EXPECT_EQ(asking.Code(), "E_BUSY");
}

// Steps of 10 ms, 2 ms a text and 1 ms a prompt token within a goal of 100 ms; twenty texts leave 30 tokens of a step.
struct Goals : Asking {
  Goals() {
    options.tpot_goal_ms = 100;
    stats.step_fit = {0.010, 0.002, 0.001};
    stats.running = stats.writing = 20;
    stats.texts_max = 31;
    stats.text_tokens = 50;
  }
};

// (200 + 100) tokens at 30 a step of 80 ms, forecast 1.4 times as long; nothing is held.
TEST(Admission, WithBothGoalsTheStepsToComeAreForecast) {
  Goals goals;
  goals.request.deadline_ms = 60'000;
  goals.options.ttft_goal_ms = 1'119;
  EXPECT_EQ(goals.Code(), "E_BUSY");
  goals.options.ttft_goal_ms = 1'121;
  EXPECT_EQ(goals.Code(), "");
}

// A pass of 10 ms and 0.1 ms a token, 16.4 for the lane: twenty texts leave 30 ms of a step, so each has a whole lane.
// (200 + 100) tokens at 64 a step of 66.4 ms, 1.4 times as long; 10 / 16.4 of a step until the setup is saved, and 0.2
// s beside twenty texts for prompts that share the pass.
TEST(Admission, TheForecastKnowsWhatPassesOfPromptsCost) {
  Goals goals;
  goals.stats.step_fit = {0.010, 0.002, 0.0001, 0.010};
  goals.request.deadline_ms = 60'000;
  const double first_s = 1.4 * 300 * 0.0664 / 64 + 0.010 / 0.0164 * 0.0664 + 0.2;
  goals.options.ttft_goal_ms = static_cast<int64_t>(1e3 * first_s) - 1;
  EXPECT_EQ(goals.Code(), "E_BUSY");
  goals.options.ttft_goal_ms += 2;
  EXPECT_EQ(goals.Code(), "");
}

// 200 tokens before it may take nine tenths of the goal, however short its own prompt is.
TEST(Admission, ShortPromptsDoNotFillTheLine) {
  Goals goals;
  goals.request.prompt.assign(1, 1);
  goals.options.ttft_goal_ms = 829;
  EXPECT_EQ(goals.Code(), "E_BUSY");
  goals.options.ttft_goal_ms = 830;
  EXPECT_EQ(goals.Code(), "");
}

// The ninth in line, where eleven places are free, and the same where none is: 8 + 1 texts of 50 tokens have to end,
// 20 of which write in steps of 80 ms.
TEST(Admission, APlaceAmongTheTextsHasToBeFree) {
  Goals goals;
  goals.stats.queued = 5;
  goals.admitted.waiting = 3;
  goals.options.ttft_goal_ms = 1'121;
  EXPECT_EQ(goals.Code(), "");
  goals.stats.texts_max = 20;
  EXPECT_EQ(goals.Code(), "E_BUSY");
  const double wait_s = 1.4 * (9 * 50 * 0.08 / 20 + 100 * 0.08 / 30);
  goals.options.ttft_goal_ms = static_cast<int64_t>(1e3 * wait_s) - 1;
  EXPECT_EQ(goals.Code(), "E_BUSY");
  goals.options.ttft_goal_ms += 2;
  EXPECT_EQ(goals.Code(), "");
}

TEST(Admission, AGoalIsNotNegative) {
  EngineOptions options;
  options.policy = [](const sched::Snapshot&) { return sched::StepPlan{}; };
  options.ttft_goal_ms = -1;
  const auto found = CompleteOptions(options, {.kv_pages = 4, .step_tokens_max = 1'000});
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().message, "ttft_goal_ms: found -1, expected 0 or more");
}

}  // namespace
}  // namespace outrider::serve
