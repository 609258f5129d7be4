#include "base/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ctime>
#include <limits>

namespace outrider::base {

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t) && std::atomic<uint32_t>::is_always_lock_free);

namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;

// The kernel wants an address; the word is only compared there, never written.
uint32_t* AddressOf(const std::atomic<uint32_t>& word) {
  return reinterpret_cast<uint32_t*>(const_cast<std::atomic<uint32_t>*>(&word));
}

}  // namespace

void FutexWait(const std::atomic<uint32_t>& word, uint32_t expected, Deadline deadline) {
  const int64_t at_ns = deadline.AtNs() > 0 ? deadline.AtNs() : 0;
  timespec until{};
  until.tv_sec = at_ns / kNsPerSecond;
  until.tv_nsec = at_ns % kNsPerSecond;
  // FUTEX_WAIT_BITSET takes an absolute time of CLOCK_MONOTONIC, which is what steady_clock reads on Linux.
  syscall(SYS_futex, AddressOf(word), FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected, &until, nullptr,
          FUTEX_BITSET_MATCH_ANY);
}

void FutexWakeAll(const std::atomic<uint32_t>& word) {
  syscall(SYS_futex, AddressOf(word), FUTEX_WAKE | FUTEX_PRIVATE_FLAG, std::numeric_limits<int>::max(), nullptr,
          nullptr, 0);
}

}  // namespace outrider::base
