#pragma once
// What passes of prompts cost by themselves, where prompts have passes of their own, and how often prompts come.

#include <cstdint>

#include "sched/rate_ewma.h"
#include "sched/step_plan.h"
#include "serve/step_model.h"

namespace outrider::serve {

class PromptPasses {
 public:
  explicit PromptPasses(const sched::StepLimits& limits) : model_(limits) {}

  // A step of `step_s` seconds, `pass_s` of them for a pass of so many tokens of prompts alone; 0: there was none.
  void Ran(int64_t prompt_tokens, double pass_s, double step_s) {
    if (pass_s > 0) model_.Add(0, prompt_tokens, pass_s);
    const double rest_s = step_s - pass_s;
    step_s_ = step_s_ == 0 ? rest_s : step_s_ + kNew * (rest_s - step_s_);
  }
  // So many became ready since the last call.
  void Came(int64_t prompts, int64_t now_ns) {
    if (last_ns_ > 0) rate_.Observe(static_cast<double>(prompts), static_cast<double>(now_ns - last_ns_) * 1e-9);
    last_ns_ = now_ns;
  }

  sched::PromptPass Measured() const {
    return {.setup_s = model_.fit().step_s, .prompts_per_s = rate_.PerSecond(), .step_s = step_s_};
  }

 private:
  static constexpr double kHalfLifeS = 2, kNew = 0.1;  // kNew: weight of the newest step

  StepModel model_;
  sched::RateEwma rate_{kHalfLifeS};
  double step_s_ = 0;
  int64_t last_ns_ = 0;
};

}  // namespace outrider::serve
