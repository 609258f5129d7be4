#pragma once
// Programs do something else in every n-th step: they step the optimizer, log, evaluate. Such a step diverges from the
// plan of the others, and those behind it, which are recorded then, are common ones again. When does it come next?

#include <cstdint>

namespace outrider::plan {

class RareStepHabit {
 public:
  // A step, counted from 1, has left all plans, or was recorded because it was expected and no plan knows it. Two equal
  // gaps in a row are a habit.
  void NoteUnknown(uint64_t step) {
    const uint64_t gap = step - last_;
    next_ = gap == gap_ && last_ > 0 && gap > 1 ? step + gap : 0;
    gap_ = last_ > 0 ? gap : 0;
    last_ = step;
  }

  bool Expects(uint64_t step) const { return step == next_; }

 private:
  uint64_t last_ = 0, gap_ = 0, next_ = 0;
};

}  // namespace outrider::plan
