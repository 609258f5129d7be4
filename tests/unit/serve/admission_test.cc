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
