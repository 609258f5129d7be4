#pragma once
// When the values of a linear list of ops may be let go.

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"

namespace outrider::plan {

using ValueSlot = base::Id<struct ValueSlotTag>;

struct SlotUse {
  std::vector<ValueSlot> reads;
  std::vector<ValueSlot> writes;
};

// For each op, the slots that nothing behind it touches, without duplicates and in increasing order: to be dropped once
// the op has run. Slots in `kept` (outputs of the list) are never dropped. Every slot is below `slot_count`.
std::vector<std::vector<ValueSlot>> DropLists(std::span<const SlotUse> ops, std::span<const ValueSlot> kept,
                                              uint32_t slot_count);

}  // namespace outrider::plan
