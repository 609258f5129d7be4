#pragma once
// How long a token may be held when each shall come within a goal: from the time that steps lately took.

#include <algorithm>
#include <cstdint>

#include "sched/holding.h"
#include "serve/step_times.h"

namespace outrider::serve {

class GoalAge {
 public:
  // `age_max`: never more than this, whatever the goal allows.
  GoalAge(double goal_s, int64_t age_max, const sched::HoldingCase& of) : goal_s_(goal_s), age_max_(age_max), of_(of) {}

  // Of a step that ran. True: from now on nothing may be held, and it could be before or was not known.
  bool Add(double seconds) {
    times_.Add(seconds);
    if (times_.steps() % kEvery != 0) return false;
    const bool could = age_ > 0 || times_.steps() == kEvery;
    age_ = std::min(age_max_, sched::HoldingAge(goal_s_, times_.P95(), of_));
    return could && age_ == 0;
  }

  // In steps; 0: nothing may be held, as also before enough steps were measured.
  int64_t age() const { return age_; }

 private:
  static constexpr int64_t kEvery = 32;

  const double goal_s_;
  const int64_t age_max_;
  const sched::HoldingCase of_;
  StepTimes times_;
  int64_t age_ = 0;
};

}  // namespace outrider::serve
