#pragma once
// Does a program wait for its own results in step after step? Then what counts is how soon a step is done, not how many
// steps are under way.

#include <bit>
#include <cstdint>

namespace outrider::plan {

class ReadHabit {
 public:
  // Once per step: whether the program waited for a value of it before the next one began.
  void Note(bool read) {
    last_ = static_cast<uint8_t>(last_ << 1 | static_cast<uint8_t>(read));
    const int reads = std::popcount(last_);
    if (reads >= kMost) waits_ = true;
    if (reads <= kFew) waits_ = false;
  }

  bool WaitsEachStep() const { return waits_; }

 private:
  static constexpr int kMost = 6, kFew = 3;  // of the last eight steps
  uint8_t last_ = 0;
  bool waits_ = false;
};

}  // namespace outrider::plan
