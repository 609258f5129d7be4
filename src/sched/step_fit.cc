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

bool Bound(const StepFit& fit, double tpot_goal_s) { return tpot_goal_s > 0 && fit.Known(); }

}  // namespace

int64_t PromptTokensLeast(const StepLimits& limits) { return std::max<int64_t>(1, limits.prefill_tokens / 8); }

int64_t PromptTokensWithin(const StepFit& fit, double tpot_goal_s, int64_t texts, const StepLimits& limits) {
  if (!Bound(fit, tpot_goal_s) || texts <= 0) return limits.prefill_tokens;
  const double room = kGoalShare * tpot_goal_s - fit.Seconds(texts, 0);
  const int64_t tokens = Times(room, fit.prompt_token_s, limits.prefill_tokens);
  return std::max(tokens, std::min(PromptTokensLeast(limits), limits.prefill_tokens));
}

int64_t TextsWithin(const StepFit& fit, double tpot_goal_s, int64_t most, const StepLimits& limits) {
  if (!Bound(fit, tpot_goal_s)) return most;
  const double room = kGoalShare * tpot_goal_s - fit.Seconds(0, PromptTokensLeast(limits));
  return std::clamp<int64_t>(Times(room, fit.text_s, limits.decode_tokens), 1, std::max<int64_t>(1, most));
}

bool GoalHasRoom(const StepFit& fit, double tpot_goal_s, const StepLimits& limits) {
  return !Bound(fit, tpot_goal_s) || fit.Seconds(1, PromptTokensLeast(limits)) <= kGoalShare * tpot_goal_s;
}

double PromptTokensPerS(const StepFit& fit, double tpot_goal_s, int64_t texts, const StepLimits& limits) {
  if (!fit.Known()) return 0;
  const int64_t tokens = PromptTokensWithin(fit, tpot_goal_s, texts, limits);
  const double seconds = fit.Seconds(texts, tokens);
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

double PlaceWaitS(const Line& line) {
  const int64_t place = line.running + line.ahead + 1 - line.texts_max;
  if (place <= 0 || line.running <= 0) return 0;
  return static_cast<double>(place) * line.text_tokens * line.step_s / static_cast<double>(line.running);
}

}  // namespace outrider::sched
