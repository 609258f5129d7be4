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
  // A step of `step_s` seconds, `pass_s` of them for a pass of so many tokens of prompts alone; 0: there was none.
  void Ran(int64_t prompt_tokens, double pass_s, double step_s) {
    if (pass_s > 0 && prompt_tokens > 0) Fit(static_cast<double>(prompt_tokens), pass_s);
    const double rest_s = step_s - pass_s;
    step_s_ = step_s_ == 0 ? rest_s : step_s_ + kNew * (rest_s - step_s_);
  }
  // So many became ready since the last call.
  void Came(int64_t prompts, int64_t now_ns) {
    if (last_ns_ > 0) rate_.Observe(static_cast<double>(prompts), static_cast<double>(now_ns - last_ns_) * 1e-9);
    last_ns_ = now_ns;
  }

  sched::PromptPass Measured() const {
    return {.setup_s = setup_s_, .prompts_per_s = rate_.PerSecond(), .step_s = step_s_};
  }
  // What steps take: `together`, which knows them without such passes, and these, if there were any.
  sched::StepFit With(sched::StepFit together) const {
    if (weight_ > 0) together.prompt_token_s = token_s_, together.setup_s = setup_s_;
    return together;
  }

 private:
  static constexpr double kHalfLifeS = 2;
  static constexpr double kNew = 0.1;     // weight of the newest step
  static constexpr double kKept = 0.98;   // of what a pass weighs, with each further one
  static constexpr double kSpread = 0.1;  // of their mean: passes less apart than that tell nothing of the setup

  // A line through the passes by least squares; the setup is what it has at no token.
  void Fit(double tokens, double seconds) {
    for (double* sum : {&weight_, &tokens_, &seconds_, &squares_, &products_}) *sum *= kKept;
    weight_ += 1;
    tokens_ += tokens;
    seconds_ += seconds;
    squares_ += tokens * tokens;
    products_ += tokens * seconds;
    const double mean = tokens_ / weight_, mean_s = seconds_ / weight_, variance = squares_ / weight_ - mean * mean;
    if (variance >= kSpread * kSpread * mean * mean) {
      token_s_ = std::max(0.0, (products_ / weight_ - mean * mean_s) / variance);
      setup_s_ = std::max(0.0, mean_s - token_s_ * mean);
    } else if (setup_s_ == 0) {
      token_s_ = mean_s / mean;
    }
  }

  sched::RateEwma rate_{kHalfLifeS};
  double weight_ = 0, tokens_ = 0, seconds_ = 0, squares_ = 0, products_ = 0;  // of passes, the newest weigh most
  double setup_s_ = 0, token_s_ = 0, step_s_ = 0;
  int64_t last_ns_ = 0;
};

}  // namespace outrider::serve
