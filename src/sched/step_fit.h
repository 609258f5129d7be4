#pragma once
// What a step takes by what it runs, as it was fitted to past steps, and what a goal of time per token leaves room for.

#include <cstdint>

#include "sched/step_plan.h"

namespace outrider::sched {

// Seconds of a step: a part of its own, one per text that writes a token, one per token of a prompt, and one for having
// any, where prompts have passes of their own.
struct StepFit {
  double step_s = 0, text_s = 0, prompt_token_s = 0, setup_s = 0;  // none below 0; all 0: nothing is measured

  double PromptSeconds(int64_t tokens) const {
    return tokens > 0 ? setup_s + static_cast<double>(tokens) * prompt_token_s : 0;
  }
  double Seconds(int64_t texts, int64_t prompt_tokens) const {
    return step_s + static_cast<double>(texts) * text_s + PromptSeconds(prompt_tokens);
  }
  bool Known() const { return step_s > 0 || text_s > 0 || prompt_token_s > 0; }
};

// Of the goal: what a step may take by prediction. The rest is for steps that take longer than predicted.
constexpr double kGoalShare = 0.8;
// Waiting is forecast this many times longer than the fit says.
constexpr double kForecastFactor = 1.4;
// Of the goal of the first token: what a request may wait by forecast before its own prompt begins. A line that is full
// to the goal would take the shortest prompts alone.
constexpr double kWaitShare = 0.9;

// Prompt tokens that run in any case: an eighth of the lane, so that prompts never starve beside texts.
int64_t PromptTokensLeast(const StepLimits& limits);

// Tokens of prompts in a step beside `texts` that write: as many as the goal has room for, PromptTokensLeast at least.
// The whole lane without a goal, a fit or a text: nobody waits for the step then. For machines without a setup, where
// each step has its share.
int64_t PromptTokensWithin(const StepFit& fit, double tpot_goal_s, int64_t texts, const StepLimits& limits);

// Seconds that a step beside `texts` may spend on prompts: what PromptTokensWithin takes. With a setup on average,
// since a goal is one of the mean: what steps leave over pays for a pass once in a while (serve/prompt_budget.h), a
// whole lane in eight steps at least.
double PromptSecondsWithin(const StepFit& fit, double tpot_goal_s, int64_t texts, const StepLimits& limits);

// Texts at once, so that a step of them all and of the least for prompts is within the goal; 1 to B. `most` without a
// goal or a fit.
int64_t TextsWithin(const StepFit& fit, double tpot_goal_s, int64_t most, const StepLimits& limits);

// Whether a step of one text and the least for prompts is within the goal.
bool GoalHasRoom(const StepFit& fit, double tpot_goal_s, const StepLimits& limits);

// At what rate prompts run beside `texts`; 0 without a fit.
double PromptTokensPerS(const StepFit& fit, double tpot_goal_s, int64_t texts, const StepLimits& limits);

struct Line {
  int64_t running = 0, texts_max = 0;  // texts and prompts that run, and how many may
  int64_t ahead = 0;                   // requests that wait for a place already
  double text_tokens = 0;              // that a text writes, on average
  double step_s = 0;
};

// Seconds until a place is free for one more request, when texts end one after the other.
double PlaceWaitS(const Line& line);

}  // namespace outrider::sched
