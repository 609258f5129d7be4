#pragma once
// How long steps lately took.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace outrider::serve {

class StepTimes {
 public:
  static constexpr int64_t kWindow = 256;  // steps that count

  void Add(double seconds) { seconds_[static_cast<size_t>(steps_++ % kWindow)] = seconds; }
  int64_t steps() const { return steps_; }

  // The 95th percentile, nearest rank; 0 of none.
  double P95() const {
    if (steps_ == 0) return 0;
    std::array<double, kWindow> sorted = seconds_;
    const auto count = static_cast<std::ptrdiff_t>(std::min(steps_, kWindow));
    const auto place = sorted.begin() + (count * 95 + 99) / 100 - 1;
    std::nth_element(sorted.begin(), place, sorted.begin() + count);
    return *place;
  }

 private:
  std::array<double, kWindow> seconds_{};  // a ring
  int64_t steps_ = 0;
};

}  // namespace outrider::serve
