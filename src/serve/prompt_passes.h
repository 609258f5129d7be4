#pragma once
// What passes of prompts cost by themselves, where prompts have passes of their own, and how often prompts come.

#include <algorithm>
#include <cstdint>

#include "sched/rate_ewma.h"
#include "sched/step_fit.h"
#include "sched/step_plan.h"

namespace outrider::serve {

class PromptPasses {
 public:
  // A pass of so many tokens of prompts alone. One that took long for reasons of its own counts as twice the
  // prediction.
  void AddPass(int64_t prompt_tokens, double seconds) {
    if (!(seconds > 0) || prompt_tokens <= 0) return;
    const double predicted = setup_s_ + static_cast<double>(prompt_tokens) * token_s_;
    Fit(static_cast<double>(prompt_tokens), weight_ > 0 ? std::min(seconds, 2 * predicted) : seconds);
  }
  // What the rest of a step with texts took.
  void AddRest(double seconds) {
    seconds = std::max(0.0, seconds);
    step_s_ = step_s_ == 0 ? seconds : step_s_ + kNew * (seconds - step_s_);
  }
  // So many became ready since the last call. A long time without any says no more than a few half-lives.
  void Arrived(int64_t prompts, int64_t now_ns) {
    const double since_s = static_cast<double>(now_ns - last_ns_) * 1e-9;
    if (last_ns_ > 0) rate_.Observe(static_cast<double>(prompts), std::min(since_s, 4 * sched::kArrivalHalfLifeS));
    last_ns_ = now_ns;
  }

  sched::PromptPass Measured() const {
    return {.setup_s = setup_s_, .prompts_per_s = rate_.PerSecond(), .step_s = step_s_};
  }
  // What steps take: `rest`, which knows them without such passes, and these, if there were any.
  sched::StepFit Complete(sched::StepFit rest) const {
    if (weight_ > 0) rest.prompt_token_s = token_s_, rest.setup_s = setup_s_;
    return rest;
  }

 private:
  static constexpr double kNew = 0.1;    // weight of the newest step
  static constexpr double kKept = 0.98;  // of what a pass weighs, with each further one
  static constexpr double kSpread =
      0.1;  // of their mean: passes less apart than that do not tell setup and tokens apart

  // A line through the passes by least squares; the setup is what it has at no token. It always meets their mean.
  void Fit(double tokens, double seconds) {
    for (double* sum : {&weight_, &tokens_, &seconds_, &squares_, &products_}) *sum *= kKept;
    weight_ += 1;
    tokens_ += tokens;
    seconds_ += seconds;
    squares_ += tokens * tokens;
    products_ += tokens * seconds;
    const double mean = tokens_ / weight_, mean_s = seconds_ / weight_, variance = squares_ / weight_ - mean * mean;
    if (variance >= kSpread * kSpread * mean * mean) {
      token_s_ = std::clamp((products_ / weight_ - mean * mean_s) / variance, 0.0, mean_s / mean);
      setup_s_ = mean_s - token_s_ * mean;
      return;
    }
    const double predicted = setup_s_ + token_s_ * mean, scale = predicted > 0 ? mean_s / predicted : 0;
    setup_s_ *= scale;
    token_s_ = predicted > 0 ? token_s_ * scale : mean_s / mean;
  }

  sched::RateEwma rate_{sched::kArrivalHalfLifeS};
  double weight_ = 0, tokens_ = 0, seconds_ = 0, squares_ = 0, products_ = 0;  // of passes, the newest weigh most
  double setup_s_ = 0, token_s_ = 0, step_s_ = 0;
  int64_t last_ns_ = 0;
};

}  // namespace outrider::serve
