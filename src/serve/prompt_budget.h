#pragma once
// When prompts may run beside texts under a goal of time per token, where their passes have a setup: small pieces in
// each step would pay it again and again, so steps save until a whole pass is paid for.

#include <algorithm>
#include <cstdint>

#include "sched/step_fit.h"

namespace outrider::serve {

class PromptBudget {
 public:
  // Of the next step: tokens that it may take of `waiting`. The whole lane once the seconds that steps may spend on
  // prompts (`each_s` of this one) pay for all of them that fit it, none before.
  int64_t Next(double each_s, const sched::StepFit& fit, int64_t waiting, const sched::StepLimits& limits) {
    const int64_t lane = limits.prefill_tokens;
    lane_s_ = fit.PromptSeconds(lane);
    saved_s_ = each_s >= lane_s_ ? lane_s_ : std::min(saved_s_ + each_s, lane_s_);
    return saved_s_ >= fit.PromptSeconds(std::min(waiting, lane)) ? lane : 0;
  }
  // A pass that took longer than predicted is paid back, up to one more; not where each step may have a whole one.
  void Spent(double seconds) { saved_s_ = std::max(-lane_s_, saved_s_ - seconds); }

 private:
  double saved_s_ = 0, lane_s_ = 0;
};

}  // namespace outrider::serve
