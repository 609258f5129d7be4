#pragma once
// Fits what steps take (sched/step_fit.h) while they run.

#include <algorithm>
#include <cstdint>

#include "sched/step_fit.h"

namespace outrider::serve {

// Each step moves the fit a part of the way towards itself, along what it ran and nowhere else. So steps that are all
// alike, as a bound on their time makes them, leave alone what they tell nothing about, and what it predicts for steps
// of their kind is right all the same. A step that took long for reasons of its own counts as twice the prediction.
class StepModel {
 public:
  // `limits`: what makes texts and prompt tokens comparable.
  explicit StepModel(const sched::StepLimits& limits)
      : texts_max_(static_cast<double>(limits.decode_tokens)),
        prompt_tokens_max_(static_cast<double>(limits.prefill_tokens)) {}

  void Add(int64_t texts, int64_t prompt_tokens, double seconds) {
    const int64_t tokens = texts + prompt_tokens;
    if (!(seconds > 0) || tokens <= 0) return;
    const double t = static_cast<double>(texts) / texts_max_;
    const double p = static_cast<double>(prompt_tokens) / prompt_tokens_max_;
    const double predicted = fit_.Seconds(texts, prompt_tokens);
    if (!fit_.Known() && prompt_tokens > 0) {
      fit_.text_s = fit_.prompt_token_s = seconds / static_cast<double>(tokens);
      return;
    }
    // A first step of texts alone is fitted whole: few texts say little of what one more costs.
    const double error = fit_.Known() ? std::min(seconds - predicted, predicted) : seconds / kPace;
    const double move = kPace * error / (1 + t * t + p * p);
    fit_.step_s = std::max(0.0, fit_.step_s + move);
    fit_.text_s = std::max(0.0, fit_.text_s + move * t / texts_max_);
    fit_.prompt_token_s = std::max(0.0, fit_.prompt_token_s + move * p / prompt_tokens_max_);
  }

  const sched::StepFit& fit() const { return fit_; }

 private:
  static constexpr double kPace = 0.2;

  const double texts_max_, prompt_tokens_max_;
  sched::StepFit fit_;
};

}  // namespace outrider::serve
