#include "base/spsc_ring.h"

#include <gtest/gtest.h>

namespace outrider::base {
namespace {

const auto kAtOnce = [] { return Deadline::AfterNs(0); };

void Fill(SpscRing<int>& ring, int first, int count) {
  for (int i = 0; i < count; ++i) {
    ring.Slot() = first + i;
    ring.Push();
  }
}

TEST(SpscRing, RejectsOddCapacities) {
  EXPECT_THROW(SpscRing<int>({.capacity = 3}), CheckError);
  EXPECT_THROW(SpscRing<int>({.capacity = 0}), CheckError);
}

TEST(SpscRing, DeliversInOrderAndCounts) {
  SpscRing<int> ring({.capacity = 4});
  Fill(ring, 10, 3);
  EXPECT_EQ(ring.Pushed(), 3u);
  ASSERT_EQ(ring.WaitForWork(kAtOnce()), 3u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(ring.Front(), 10 + i);
    EXPECT_EQ(ring.Done(), static_cast<uint64_t>(i));
    ring.PopFront();
  }
  EXPECT_EQ(ring.WaitForWork(kAtOnce()), 0u);
}

TEST(SpscRing, SequenceNumbersCompleteInOrder) {
  SpscRing<int> ring({.capacity = 4});
  ring.Slot() = 1;
  EXPECT_EQ(ring.Push(), 1u);
  ring.Slot() = 2;
  EXPECT_EQ(ring.Push(), 2u);
  EXPECT_FALSE(ring.WaitDone(1, kAtOnce()));
  ring.PopFront();
  EXPECT_TRUE(ring.WaitDone(1, kAtOnce()));
  EXPECT_FALSE(ring.WaitDone(2, kAtOnce()));
}

TEST(SpscRing, FullRingHasNoRoomUntilAnItemIsDone) {
  SpscRing<int> ring({.capacity = 2, .slot_wait_ms = 1});
  Fill(ring, 0, 2);
  EXPECT_FALSE(ring.WaitForRoom(kAtOnce()));
  EXPECT_THROW(ring.Slot(), CheckError);
  ring.PopFront();
  EXPECT_TRUE(ring.WaitForRoom(kAtOnce()));
  Fill(ring, 2, 1);
  ring.PopFront();
  EXPECT_EQ(ring.Front(), 2) << "the slot of item 1 must have been used again";
}

TEST(SpscRing, StopStillDeliversWhatWasPushed) {
  SpscRing<int> ring({.capacity = 2});
  Fill(ring, 7, 1);
  ring.Stop();
  EXPECT_TRUE(ring.Stopped());
  ASSERT_EQ(ring.WaitForWork(Deadline::AfterMs(60'000)), 1u);
  ring.PopFront();
  EXPECT_EQ(ring.WaitForWork(Deadline::AfterMs(60'000)), 0u);
}

}  // namespace
}  // namespace outrider::base
