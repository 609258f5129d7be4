#pragma once
// How long a token may be held when each shall come within a goal: from the time that steps lately took.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "sched/holding.h"

namespace outrider::serve {

class GoalAge {
 public:
  // `age_max`: never more than this, whatever the goal allows.
  GoalAge(double goal_s, int64_t age_max, const sched::HoldingCase& of) : goal_s_(goal_s), age_max_(age_max), of_(of) {}

  // Of a step that ran. True: from now on nothing may be held, and it could be before or was not known.
  bool Add(double seconds) {
    seconds_[static_cast<size_t>(steps_++ % kWindow)] = seconds;
    if (steps_ % kEvery != 0) return false;
    const bool could = age_ > 0 || steps_ == kEvery;
    age_ = std::min(age_max_, sched::HoldingAge(goal_s_, P95(), of_));
    return could && age_ == 0;
  }

  // In steps; 0: nothing may be held, as also before enough steps were measured.
  int64_t age() const { return age_; }

 private:
  static constexpr int64_t kWindow = 256, kEvery = 32;

  double P95() const {
    std::array<double, kWindow> sorted = seconds_;
    const auto count = static_cast<std::ptrdiff_t>(std::min(steps_, kWindow));
    const auto place = sorted.begin() + (count * 95 + 99) / 100 - 1;
    std::nth_element(sorted.begin(), place, sorted.begin() + count);
    return *place;
  }

  const double goal_s_;
  const int64_t age_max_;
  const sched::HoldingCase of_;
  std::array<double, kWindow> seconds_{};  // a ring
  int64_t steps_ = 0, age_ = 0;
};

}  // namespace outrider::serve
