#pragma once
// How much memory a linear list of ops needs at once.

#include <cstddef>
#include <span>

namespace outrider::plan {

struct SlotLife {
  int first = -1, last = -1;  // op that makes it, last op that uses it; -1: never used
  size_t nbytes = 0;
};

// The largest sum of the bytes that are alive during one of `op_count` ops. What is made before op `kept_before` stays
// alive to the end.
size_t PeakBytes(std::span<const SlotLife> slots, int op_count, int kept_before = 0);

}  // namespace outrider::plan
