#include "sched/admission.h"

#include <gtest/gtest.h>

#include "sched/rate_ewma.h"

namespace outrider::sched {
namespace {

constexpr AdmissionLimits kLimits{.total = {.requests = 4, .tokens = 1000}, .per_key = {}};
constexpr Ask kAsk{.prompt_tokens = 100, .cached_tokens = 0, .max_tokens = 50, .deadline_s = 0};

Load Busy() {
  Load load;
  load.total = {2, 800};
  load.key = {1, 300};
  load.prefill_tokens = 300;
  load.backlog_tokens = 700;
  load.prefill_tokens_per_s = 100;
  load.goodput_tokens_per_s = 50;
  load.hold_bound_s = 0.5;
  return load;
}

TEST(Admission, TakesWhatFits) {
  const Admission admission = Admit(kAsk, Busy(), kLimits);
  EXPECT_EQ(admission.verdict, Verdict::kAdmit);
  EXPECT_EQ(admission.retry_after_s, 0);
  EXPECT_DOUBLE_EQ(admission.predicted_ttft_s, (300 + 100) / 100.0 + 0.5);
}

TEST(Admission, WaitsForAPlaceWhilePromptsBeforeItRun) {
  Load load = Busy();
  load.place_wait_s = 2.5;
  EXPECT_DOUBLE_EQ(Admit(kAsk, load, kLimits).predicted_ttft_s, 3 + 1 + 0.5);
  load.place_wait_s = 3.5;
  EXPECT_DOUBLE_EQ(Admit(kAsk, load, kLimits).predicted_ttft_s, 3.5 + 1 + 0.5);
}

TEST(Admission, AWaitThatIsTooLongForAnyPrompt) {
  Ask ask = kAsk;
  ask.deadline_s = 60;
  ask.wait_max_s = 3.01;
  EXPECT_EQ(Admit(ask, Busy(), kLimits).verdict, Verdict::kAdmit) << "its own prompt does not count";
  ask.wait_max_s = 2.99;
  EXPECT_EQ(Admit(ask, Busy(), kLimits).verdict, Verdict::kDeadline);
  Load unmeasured = Busy();
  unmeasured.prefill_tokens_per_s = 0;
  EXPECT_EQ(Admit(ask, unmeasured, kLimits).verdict, Verdict::kAdmit);
}

TEST(Admission, CapsCountTheAskingRequest) {
  Load load = Busy();
  load.total.tokens = 850;
  EXPECT_EQ(Admit(kAsk, load, kLimits).verdict, Verdict::kAdmit);
  load.total.tokens = 851;
  EXPECT_EQ(Admit(kAsk, load, kLimits).verdict, Verdict::kTokens);
  load.total = {4, 0};
  EXPECT_EQ(Admit(kAsk, load, kLimits).verdict, Verdict::kRequests);
}

TEST(Admission, CapsOfAKey) {
  AdmissionLimits limits = kLimits;
  limits.per_key = {.requests = 1, .tokens = 0};
  EXPECT_EQ(Admit(kAsk, Busy(), limits).verdict, Verdict::kKeyRequests);
  limits.per_key = {.requests = 2, .tokens = 449};
  EXPECT_EQ(Admit(kAsk, Busy(), limits).verdict, Verdict::kKeyTokens);
  limits.per_key = {.requests = 2, .tokens = 450};
  EXPECT_EQ(Admit(kAsk, Busy(), limits).verdict, Verdict::kAdmit);
}

TEST(Admission, WhatNeverFitsIsNotToldToRetry) {
  Ask ask = kAsk;
  ask.max_tokens = 901;
  const Admission admission = Admit(ask, Load{}, kLimits);
  EXPECT_EQ(admission.verdict, Verdict::kNeverFits);
  EXPECT_EQ(admission.retry_after_s, 0);
}

TEST(Admission, DeadlineAgainstThePredictedFirstToken) {
  Ask ask = kAsk;
  ask.deadline_s = 4.4;
  EXPECT_EQ(Admit(ask, Busy(), kLimits).verdict, Verdict::kDeadline);
  ask.cached_tokens = 50;
  EXPECT_EQ(Admit(ask, Busy(), kLimits).verdict, Verdict::kAdmit);
  Load unmeasured = Busy();
  unmeasured.prefill_tokens_per_s = 0;
  ask.deadline_s = 0.001;
  EXPECT_EQ(Admit(ask, unmeasured, kLimits).verdict, Verdict::kAdmit);
}

TEST(Admission, RetryAfterIsTheBacklogBetweenOneAndSixtySeconds) {
  Load load = Busy();
  load.total.requests = 4;
  EXPECT_EQ(Admit(kAsk, load, kLimits).retry_after_s, 14);
  load.backlog_tokens = 701;
  EXPECT_EQ(Admit(kAsk, load, kLimits).retry_after_s, 15);
  load.backlog_tokens = 0;
  EXPECT_EQ(Admit(kAsk, load, kLimits).retry_after_s, 1);
  load.backlog_tokens = 1'000'000;
  EXPECT_EQ(Admit(kAsk, load, kLimits).retry_after_s, 60);
  load.goodput_tokens_per_s = 0;
  EXPECT_EQ(Admit(kAsk, load, kLimits).retry_after_s, 1);
}

TEST(RateEwma, WeighsByTimeAndForgets) {
  RateEwma rate(10);
  EXPECT_EQ(rate.PerSecond(), 0);
  rate.Observe(5, 0);
  EXPECT_EQ(rate.PerSecond(), 0);
  rate.Observe(100, 1);
  EXPECT_DOUBLE_EQ(rate.PerSecond(), 100);
  rate.Observe(100, 1);
  EXPECT_NEAR(rate.PerSecond(), 100, 1e-9);
  rate.Observe(0, 10);  // one half-life without work
  const double kept = 0.5 * (std::exp2(-0.1) + 1);
  EXPECT_NEAR(rate.PerSecond(), 100 * kept / (kept + 10), 1e-9);
  rate.Observe(0, 1e6);
  EXPECT_LT(rate.PerSecond(), 1e-6);
}

}  // namespace
}  // namespace outrider::sched
