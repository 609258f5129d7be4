#include "plan/peak_bytes.h"

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace outrider::plan {

size_t PeakBytes(std::span<const SlotLife> slots, int op_count, int kept_before) {
  std::vector<size_t> born(static_cast<size_t>(op_count) + 1, 0), gone(static_cast<size_t>(op_count) + 1, 0);
  for (const SlotLife& slot : slots) {
    if (slot.first < 0) continue;
    OUTRIDER_CHECK(slot.first <= slot.last && slot.last < op_count, "slot from op ", slot.first, " to op ", slot.last, " of ", op_count);
    born[static_cast<size_t>(slot.first)] += slot.nbytes;
    if (slot.first >= kept_before) gone[static_cast<size_t>(slot.last) + 1] += slot.nbytes;
  }
  size_t alive = 0, peak = 0;
  for (size_t op = 0; op < born.size(); ++op) {
    alive = alive - gone[op] + born[op];
    peak = std::max(peak, alive);
  }
  return peak;
}

}  // namespace outrider::plan
