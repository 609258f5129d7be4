#pragma once
// A measured rate that forgets: what was measured a half-life ago counts half.

#include <cmath>

namespace outrider::sched {

constexpr double kArrivalHalfLifeS = 2;  // of the rate at which prompts come

class RateEwma {
 public:
  explicit RateEwma(double half_life_s) : half_life_s_(half_life_s) {}

  // `amount` was done in `seconds`; ignored unless seconds > 0.
  void Observe(double amount, double seconds) {
    if (!(seconds > 0) || !(amount >= 0)) return;
    const double kept = std::exp2(-seconds / half_life_s_);
    amount_ = amount_ * kept + amount;
    seconds_ = seconds_ * kept + seconds;
  }

  // Per second; 0 before anything was measured.
  double PerSecond() const { return seconds_ > 0 ? amount_ / seconds_ : 0; }

 private:
  double half_life_s_;
  double amount_ = 0;  // decayed sums: long and short measurements weigh by their time
  double seconds_ = 0;
};

}  // namespace outrider::sched
