#include "plan/liveness.h"

#include <algorithm>

#include "base/check.h"

namespace outrider::plan {

std::vector<std::vector<ValueSlot>> DropLists(std::span<const SlotUse> ops, std::span<const ValueSlot> kept,
                                              uint32_t slot_count) {
  std::vector<bool> settled(slot_count);
  const auto settle = [&](ValueSlot slot) {
    OUTRIDER_CHECK(slot.value < slot_count, "slot ", slot.value, " of ", slot_count);
    const bool is_last_use = !settled[slot.value];
    settled[slot.value] = true;
    return is_last_use;
  };
  for (const ValueSlot slot : kept) settle(slot);

  std::vector<std::vector<ValueSlot>> drops(ops.size());
  for (size_t i = ops.size(); i-- > 0;) {
    for (const std::vector<ValueSlot>* uses : {&ops[i].reads, &ops[i].writes}) {
      std::copy_if(uses->begin(), uses->end(), std::back_inserter(drops[i]), settle);
    }
    std::sort(drops[i].begin(), drops[i].end());
  }
  return drops;
}

}  // namespace outrider::plan
