#pragma once
// A counter that only grows, and that threads can wait on.
//
// One thread advances it, any number of threads wait for a value. Advancing costs one store and one load as long as
// nobody waits for a value that has been reached, so a waiter for item 1000 is not woken by items 1 to 999.
//
// Why no wake-up is lost: the advancing thread stores `value_` and then reads `wanted_`; a waiter writes `wanted_` and
// then reads `value_`; all four are sequentially consistent, so at least one of the two sees the other. `epoch_` is
// read before registering and bumped after the registration is taken back, so a waiter that was passed over between
// registering and sleeping finds a changed epoch and does not sleep.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <thread>

#include "base/check.h"
#include "base/clock.h"
#include "base/futex.h"

namespace outrider::base {

// How long a waiter polls before it sleeps. With two cores or fewer, polling only takes time from the other side, so
// there the answer is always zero.
inline int64_t SpinBudgetNs(int64_t wanted_ns) {
  static const bool may_spin = std::thread::hardware_concurrency() > 2;
  return may_spin ? wanted_ns : 0;
}

class alignas(64) WaitableCounter {
 public:
  explicit WaitableCounter(int64_t spin_ns = 0) : spin_ns_(SpinBudgetNs(spin_ns)) {}
  WaitableCounter(const WaitableCounter&) = delete;
  WaitableCounter& operator=(const WaitableCounter&) = delete;

  uint64_t Value() const { return value_.load(std::memory_order_acquire); }

  // By the advancing thread only. Everything written before is visible to whoever sees the new value.
  void Advance(uint64_t value) {
    OUTRIDER_DCHECK(value >= value_.load(std::memory_order_relaxed), "counter must not go back to ", value);
    value_.store(value, std::memory_order_seq_cst);
    if (wanted_.load(std::memory_order_seq_cst) <= value) WakeWaiters();
  }

  // True once the counter has reached `target`; false when the deadline passes or the counter is interrupted first.
  bool WaitAtLeast(uint64_t target, Deadline deadline) {
    if (Value() >= target) return true;
    if (SpinUntil(target, deadline)) return true;
    while (true) {
      const uint32_t epoch = epoch_.load(std::memory_order_seq_cst);
      Register(target);
      if (value_.load(std::memory_order_seq_cst) >= target) return true;
      if (interrupted_.load(std::memory_order_seq_cst) || deadline.Expired()) return false;
      FutexWait(epoch_, epoch, deadline);
    }
  }

  // Ends all present and future waits whose value has not been reached. By any thread.
  void Interrupt() {
    interrupted_.store(true, std::memory_order_seq_cst);
    WakeWaiters();
  }

  bool Interrupted() const { return interrupted_.load(std::memory_order_acquire); }

 private:
  static constexpr uint64_t kNobody = std::numeric_limits<uint64_t>::max();

  void Register(uint64_t target) {
    uint64_t lowest = wanted_.load(std::memory_order_seq_cst);
    while (target < lowest && !wanted_.compare_exchange_weak(lowest, target, std::memory_order_seq_cst)) {
    }
  }

  // Everyone wakes; whoever waits for a later value registers again.
  void WakeWaiters() {
    wanted_.exchange(kNobody, std::memory_order_seq_cst);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    FutexWakeAll(epoch_);
  }

  bool SpinUntil(uint64_t target, Deadline deadline) const {
    if (spin_ns_ == 0) return false;
    const int64_t until_ns = std::min(NowNs() + spin_ns_, deadline.AtNs());
    while (NowNs() < until_ns && !Interrupted()) {
      if (Value() >= target) return true;
    }
    return false;
  }

  std::atomic<uint64_t> value_{0};
  std::atomic<uint64_t> wanted_{kNobody};  // the lowest value a registered waiter waits for
  std::atomic<uint32_t> epoch_{0};         // the word waiters sleep on
  std::atomic<bool> interrupted_{false};
  const int64_t spin_ns_;
};

}  // namespace outrider::base
