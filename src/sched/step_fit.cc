#include "sched/step_fit.h"

#include <algorithm>
#include <cmath>

namespace outrider::sched {
namespace {

// Whole times that `part` goes into `room`, `most` at most.
int64_t Times(double room, double part, int64_t most) {
  if (room <= 0) return 0;
  if (part * static_cast<double>(most) <= room) return most;
  return static_cast<int64_t>(std::floor(room / part));
}

// Of a step, that prompts get in any case.
double LeastSeconds(const StepFit& fit, const StepLimits& limits) {
  constexpr double kStepsOfALane = 8;
  return fit.setup_s > 0 ? fit.PromptSeconds(limits.prefill_tokens) / kStepsOfALane
                         : fit.PromptSeconds(PromptTokensLeast(limits));
}

bool Bound(const StepFit& fit, double tpot_goal_s) { return tpot_goal_s > 0 && fit.Known(); }

}  // namespace

int64_t PromptTokensLeast(const StepLimits& limits) { return std::max<int64_t>(1, limits.prefill_tokens / 8); }

int64_t PromptTokensWithin(const StepFit& fit, double tpot_goal_s, int64_t texts, const StepLimits& limits) {
  if (!Bound(fit, tpot_goal_s) || texts <= 0) return limits.prefill_tokens;
  const double room = kGoalShare * tpot_goal_s - fit.Seconds(texts, 0);
  const int64_t tokens = Times(room, fit.prompt_token_s, limits.prefill_tokens);
  return std::max(tokens, std::min(PromptTokensLeast(limits), limits.prefill_tokens));
}

double PromptSecondsWithin(const StepFit& fit, double tpot_goal_s, int64_t texts, const StepLimits& limits) {
  if (fit.setup_s <= 0) return fit.PromptSeconds(PromptTokensWithin(fit, tpot_goal_s, texts, limits));
  const double lane_s = fit.PromptSeconds(limits.prefill_tokens);
  if (!Bound(fit, tpot_goal_s) || texts <= 0) return lane_s;
  return std::clamp(kGoalShare * tpot_goal_s - fit.Seconds(texts, 0), LeastSeconds(fit, limits), lane_s);
}

int64_t TextsWithin(const StepFit& fit, double tpot_goal_s, int64_t most, const StepLimits& limits) {
  if (!Bound(fit, tpot_goal_s)) return most;
  const double room = kGoalShare * tpot_goal_s - fit.step_s - LeastSeconds(fit, limits);
  return std::clamp<int64_t>(Times(room, fit.text_s, limits.decode_tokens), 1, std::max<int64_t>(1, most));
}

bool GoalHasRoom(const StepFit& fit, double tpot_goal_s, const StepLimits& limits) {
  return !Bound(fit, tpot_goal_s) || fit.Seconds(1, 0) + LeastSeconds(fit, limits) <= kGoalShare * tpot_goal_s;
}

double PromptTokensPerS(const StepFit& fit, double tpot_goal_s, int64_t texts, const StepLimits& limits) {
  if (!fit.Known()) return 0;
  const double prompt_s = PromptSecondsWithin(fit, tpot_goal_s, texts, limits);
  const double step_s = fit.Seconds(texts, 0) + prompt_s;
  const double tokens =
      fit.setup_s > 0 ? static_cast<double>(limits.prefill_tokens) * prompt_s / fit.PromptSeconds(limits.prefill_tokens)
                      : static_cast<double>(PromptTokensWithin(fit, tpot_goal_s, texts, limits));
  return step_s > 0 ? tokens / step_s : 0;
}

double PlaceWaitS(const Line& line) {
  const int64_t place = line.running + line.ahead + 1 - line.texts_max;
  if (place <= 0 || line.running <= 0) return 0;
  return static_cast<double>(place) * line.text_tokens * line.step_s / static_cast<double>(line.running);
}

}  // namespace outrider::sched
