#pragma once
// What the graph runner made of a step: written by it, read whenever the step is reported.

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

namespace outrider::seam {

class TierOutcome {
 public:
  std::atomic<int64_t> graph_ops{0};   // device ops launched inside a device graph
  std::atomic<int64_t> single_ops{0};  // device ops launched one by one

  // Why a part was not captured: "TIER_NOT_CAPTURABLE: ...". The first reason stays.
  void Refuse(const std::string& why) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (why_not_.empty()) why_not_ = why;
  }
  std::string WhyNot() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return why_not_;
  }

 private:
  mutable std::mutex mutex_;
  std::string why_not_;
};

}  // namespace outrider::seam
