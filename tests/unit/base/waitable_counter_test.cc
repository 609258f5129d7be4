#include "base/waitable_counter.h"

#include <gtest/gtest.h>

namespace outrider::base {
namespace {

constexpr int64_t kShortNs = 2'000'000;

TEST(Deadline, ExpiresInTime) {
  EXPECT_TRUE(Deadline::AfterNs(-1).Expired());
  const Deadline later = Deadline::AfterMs(60'000);
  EXPECT_FALSE(later.Expired());
  EXPECT_GT(later.AtNs(), Deadline::AfterUs(1).AtNs());
}

TEST(Clock, DoesNotGoBack) {
  const int64_t before_ns = NowNs();
  const uint64_t before_ticks = CycleNow();
  EXPECT_GE(NowNs(), before_ns);
  EXPECT_GE(CycleNow(), before_ticks);
}

TEST(WaitableCounter, ReachedValueNeedsNoWait) {
  WaitableCounter counter;
  counter.Advance(5);
  EXPECT_TRUE(counter.WaitAtLeast(5, Deadline::AfterNs(-1)));
  EXPECT_TRUE(counter.WaitAtLeast(0, Deadline::AfterNs(-1)));
}

TEST(WaitableCounter, WaitEndsAtTheDeadline) {
  WaitableCounter counter;
  const int64_t start_ns = NowNs();
  EXPECT_FALSE(counter.WaitAtLeast(1, Deadline::AfterNs(kShortNs)));
  EXPECT_GE(NowNs() - start_ns, kShortNs);
}

TEST(WaitableCounter, InterruptEndsWaitsButKeepsTheValue) {
  WaitableCounter counter;
  counter.Advance(3);
  counter.Interrupt();
  EXPECT_FALSE(counter.WaitAtLeast(4, Deadline::AfterMs(60'000)));
  EXPECT_TRUE(counter.WaitAtLeast(3, Deadline::AfterMs(60'000)));
}

TEST(WaitableCounter, DoesNotSpinOnSmallMachines) {
  const bool small = std::thread::hardware_concurrency() <= 2;
  EXPECT_EQ(SpinBudgetNs(1'000), small ? 0 : 1'000);
}

}  // namespace
}  // namespace outrider::base
