// The ring under real threads; meant to run with the thread sanitizer as well.

#include "base/spsc_ring.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <thread>

namespace outrider::base {
namespace {

Deadline Generous() { return Deadline::AfterMs(60'000); }

// Not atomic on purpose: the sanitizer sees every hand-over that is not ordered.
struct Item {
  uint64_t number = 0;
  std::array<uint64_t, 4> payload{};
};

void Produce(SpscRing<Item>& ring, uint64_t first, uint64_t count) {
  for (uint64_t number = first; number < first + count; ++number) {
    Item& item = ring.Slot();
    item.number = number;
    item.payload.fill(number * 3);
    ring.Push();
  }
}

// Reads until the ring is stopped and empty. Each item's result is written before it is completed.
struct Consumer {
  uint64_t received = 0;
  uint64_t wrong = 0;
  uint64_t last_number = 0;

  void Run(SpscRing<Item>& ring) {
    while (true) {
      uint64_t ready = ring.WaitForWork(Generous());
      if (ready == 0) return;
      for (; ready > 0; --ready) {
        const Item& item = ring.Front();
        wrong += item.number != received || item.payload.back() != item.number * 3;
        last_number = item.number;
        ++received;
        ring.PopFront();
      }
    }
  }
};

class SpscRingCapacity : public testing::TestWithParam<size_t> {};

TEST_P(SpscRingCapacity, NothingIsLostOrReordered) {
  constexpr uint64_t kItems = 20'000;
  SpscRing<Item> ring({.capacity = GetParam()});
  Consumer consumer;
  std::thread thread([&] { consumer.Run(ring); });
  Produce(ring, 0, kItems);
  EXPECT_TRUE(ring.WaitDone(kItems, Generous()));
  ring.Stop();
  thread.join();
  EXPECT_EQ(consumer.received, kItems);
  EXPECT_EQ(consumer.wrong, 0u);
}

INSTANTIATE_TEST_SUITE_P(Capacities, SpscRingCapacity, testing::Values(1, 2, 64, 4096));

TEST(SpscRingThreads, EachWaiterSeesItsItemDone) {
  constexpr uint64_t kItems = 3'000;
  SpscRing<Item> ring({.capacity = 32});
  std::vector<uint64_t> results(kItems);
  std::thread consumer([&] {
    while (uint64_t ready = ring.WaitForWork(Generous())) {
      for (; ready > 0; --ready) {
        results[ring.Front().number] = ring.Front().number + 1;
        ring.PopFront();
      }
    }
  });
  // Two waiters with interleaved targets, beside the producer's own waits for room.
  std::array<uint64_t, 2> unfinished{};
  const auto wait_for = [&](uint64_t parity) {
    for (uint64_t sequence = 1 + parity; sequence <= kItems; sequence += 2) {
      const bool done = ring.WaitDone(sequence, Generous());
      unfinished[parity] += !done || results[sequence - 1] != sequence;
    }
  };
  std::thread even([&] { wait_for(0); });
  std::thread odd([&] { wait_for(1); });
  Produce(ring, 0, kItems);
  even.join();
  odd.join();
  ring.Stop();
  consumer.join();
  EXPECT_EQ(unfinished[0] + unfinished[1], 0u);
}

TEST(SpscRingThreads, PingPongNeedsNoLuck) {
  constexpr uint64_t kRounds = 2'000;
  SpscRing<Item> ring({.capacity = 4});
  Consumer consumer;
  std::thread thread([&] { consumer.Run(ring); });
  uint64_t late = 0;
  for (uint64_t round = 0; round < kRounds; ++round) {
    Produce(ring, round, 1);
    late += !ring.WaitDone(round + 1, Generous());
  }
  ring.Stop();
  thread.join();
  EXPECT_EQ(late, 0u);
  EXPECT_EQ(consumer.last_number, kRounds - 1);
}

TEST(SpscRingThreads, StopWakesASleepingConsumer) {
  SpscRing<Item> ring({.capacity = 4});
  uint64_t ready = 1;
  const int64_t start_ns = NowNs();
  std::thread consumer([&] { ready = ring.WaitForWork(Generous()); });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ring.Stop();
  consumer.join();
  EXPECT_EQ(ready, 0u);
  EXPECT_LT(NowNs() - start_ns, 30'000'000'000) << "the consumer slept until its deadline";
}

TEST(SpscRingThreads, FullRingWaitsForASlowConsumer) {
  SpscRing<Item> ring({.capacity = 2});
  Produce(ring, 0, 2);
  EXPECT_FALSE(ring.WaitForRoom(Deadline::AfterMs(1)));
  std::thread consumer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ring.PopFront();
  });
  EXPECT_TRUE(ring.WaitForRoom(Generous()));
  consumer.join();
  EXPECT_EQ(ring.Done(), 1u);
}

TEST(SpscRingThreads, AFarTargetIsReached) {
  WaitableCounter counter;
  bool reached = false;
  std::thread waiter([&] { reached = counter.WaitAtLeast(1'000, Generous()); });
  for (uint64_t value = 1; value <= 1'000; ++value) counter.Advance(value);
  waiter.join();
  EXPECT_TRUE(reached);
}

}  // namespace
}  // namespace outrider::base
