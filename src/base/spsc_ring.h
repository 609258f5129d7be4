#pragma once
// A bounded queue from one producer thread to one consumer thread, with preallocated slots that are filled and read in
// place, and with a count of completed items that any thread may wait on.
//
// Sequence numbers: the k-th Push() makes item k (k = 1, 2, ...). Item k is complete when Done() >= k.
// Every wait has a deadline. Slots keep their contents between uses; whoever needs an empty slot clears it.

#include <bit>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/waitable_counter.h"

namespace outrider::base {

struct RingOptions {
  size_t capacity = 1024;         // items; a power of two
  int64_t spin_ns = 0;            // how long waits poll before they sleep; ignored with two cores or fewer
  int64_t slot_wait_ms = 60'000;  // how long Slot() waits for room
};

template <class T>
class SpscRing {
 public:
  explicit SpscRing(RingOptions options = {})
      : slots_(options.capacity),
        mask_(options.capacity - 1),
        slot_wait_ms_(options.slot_wait_ms),
        pushed_(options.spin_ns),
        done_(options.spin_ns) {
    OUTRIDER_CHECK(std::has_single_bit(options.capacity), "capacity ", options.capacity, " is not a power of two");
  }

  size_t Capacity() const { return slots_.size(); }

  // --- producer ---

  // True when the next slot may be filled; false when the ring is still full at the deadline.
  bool WaitForRoom(Deadline deadline) {
    if (next_ - done_seen_ < Capacity()) return true;
    done_seen_ = done_.Value();
    if (next_ - done_seen_ < Capacity()) return true;
    if (!done_.WaitAtLeast(next_ - Capacity() + 1, deadline)) return false;
    done_seen_ = done_.Value();
    return true;
  }

  // The slot of the next item, to be filled before Push(). Waits while the ring is full; throws CheckError when that
  // lasts longer than `slot_wait_ms`, because then the consumer is dead.
  T& Slot() {
    if (next_ - done_seen_ >= Capacity()) [[unlikely]] {
      OUTRIDER_CHECK(WaitForRoom(Deadline::AfterMs(slot_wait_ms_)), "ring still full after ", slot_wait_ms_, " ms");
    }
    return slots_[next_ & mask_];
  }

  // Publishes the slot; wakes the consumer with one kernel call if it sleeps, with none otherwise. Returns the item's
  // sequence number.
  uint64_t Push() {
    ++next_;
    pushed_.Advance(next_);
    return next_;
  }

  // --- consumer ---

  // The number of items ready to be read; 0 when none came before the deadline or after Stop(). Items pushed before
  // Stop() are still delivered.
  uint64_t WaitForWork(Deadline deadline) {
    pushed_.WaitAtLeast(popped_ + 1, deadline);
    return pushed_.Value() - popped_;
  }

  // The oldest item that is not complete. Precondition: WaitForWork() returned more than 0.
  T& Front() {
    OUTRIDER_DCHECK(pushed_.Value() > popped_, "ring is empty");
    return slots_[popped_ & mask_];
  }

  // Completes the front item: its slot may be used again, and threads in WaitDone() for it wake.
  void PopFront() {
    ++popped_;
    done_.Advance(popped_);
  }

  // --- any thread ---

  uint64_t Pushed() const { return pushed_.Value(); }
  uint64_t Done() const { return done_.Value(); }

  // True once item `sequence` is complete, false when it is not at the deadline.
  bool WaitDone(uint64_t sequence, Deadline deadline) { return done_.WaitAtLeast(sequence, deadline); }

  // Asks the consumer to leave, and wakes it. The ring cannot be started again.
  void Stop() { pushed_.Interrupt(); }
  bool Stopped() const { return pushed_.Interrupted(); }

 private:
  std::vector<T> slots_;
  const uint64_t mask_;
  const int64_t slot_wait_ms_;

  WaitableCounter pushed_;  // advanced by the producer
  WaitableCounter done_;    // advanced by the consumer

  alignas(64) uint64_t next_ = 0;    // producer's own: items pushed
  uint64_t done_seen_ = 0;           // producer's own: lower bound of done_
  alignas(64) uint64_t popped_ = 0;  // consumer's own: items completed
};

}  // namespace outrider::base
