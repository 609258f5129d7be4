#include "plan/liveness.h"

#include <gtest/gtest.h>

#include "base/check.h"

namespace outrider::plan {
namespace {

std::vector<ValueSlot> Slots(std::initializer_list<uint32_t> values) {
  std::vector<ValueSlot> slots;
  for (const uint32_t value : values) slots.emplace_back(value);
  return slots;
}

using Drops = std::vector<std::vector<ValueSlot>>;

TEST(Liveness, DropsAtTheLastUse) {
  const std::vector<SlotUse> ops{
      {Slots({0}), Slots({1})},
      {Slots({1, 0}), Slots({2})},
      {Slots({2}), Slots({3})},
  };
  EXPECT_EQ(DropLists(ops, Slots({3}), 4), (Drops{{}, Slots({0, 1}), Slots({2})}));
}

TEST(Liveness, UnreadResultsAreDroppedAtOnce) {
  const std::vector<SlotUse> ops{{{}, Slots({0, 1})}, {Slots({0}), {}}};
  EXPECT_EQ(DropLists(ops, {}, 2), (Drops{Slots({1}), Slots({0})}));
}

TEST(Liveness, ASlotInTwoPlacesIsDroppedOnce) {
  const std::vector<SlotUse> ops{{Slots({0, 0}), Slots({0})}};
  EXPECT_EQ(DropLists(ops, {}, 1), (Drops{Slots({0})}));
}

TEST(Liveness, KeptSlotsStay) {
  const std::vector<SlotUse> ops{{Slots({0}), Slots({1})}};
  EXPECT_EQ(DropLists(ops, Slots({0, 1}), 2), (Drops{{}}));
}

TEST(Liveness, UnknownSlotsAreRefused) {
  const std::vector<SlotUse> ops{{Slots({2}), {}}};
  EXPECT_THROW(DropLists(ops, {}, 2), base::CheckError);
}

}  // namespace
}  // namespace outrider::plan
