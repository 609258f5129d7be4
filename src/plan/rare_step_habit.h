#pragma once
// Programs do something else in every n-th step: they step the optimizer, log, evaluate, and often several of these,
// each with a rhythm of its own. Such a step diverges from the plan of the others, and those behind it, which are
// recorded then, are common ones again. When does it come next?

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace outrider::plan {

class RareStepHabit {
 public:
  // A step, counted from 1, has left all plans, or was recorded because it was expected and no plan knows it. Directly
  // behind another one it says nothing: it is recorded anyway.
  void NoteUnknown(uint64_t step) {
    if (step != last_ + 1) steps_[count_++ % steps_.size()] = step;
    last_ = step;
  }

  // Two equal gaps are a rhythm, whatever lies between.
  bool Expects(uint64_t step) const {
    return std::any_of(steps_.begin(), steps_.end(), [&](uint64_t before) {
      const uint64_t gap = step - before;
      return before > 0 && gap > 1 && before > 2 * gap && Has(before - gap) && Has(before - 2 * gap);
    });
  }

 private:
  bool Has(uint64_t step) const { return std::find(steps_.begin(), steps_.end(), step) != steps_.end(); }

  std::array<uint64_t, 16> steps_{};  // the last of them, 0: none
  size_t count_ = 0;
  uint64_t last_ = 0;
};

}  // namespace outrider::plan
