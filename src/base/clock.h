#pragma once
// Time: a monotonic clock, a cheap cycle counter for profiles, and the deadline that every wait takes.

#include <chrono>
#include <cstdint>

namespace outrider::base {

// Nanoseconds of the monotonic clock; comparable between threads of one process, meaningless between runs.
inline int64_t NowNs() {
  using std::chrono::steady_clock;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// Ticks of the processor's time-stamp counter, for differences on one thread; the unit is the machine's own.
inline uint64_t CycleNow() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t ticks;
  asm volatile("mrs %0, cntvct_el0" : "=r"(ticks));
  return ticks;
#else
  return static_cast<uint64_t>(NowNs());
#endif
}

// The moment at which a wait gives up. There is deliberately no "never".
class Deadline {
 public:
  static Deadline AfterNs(int64_t wait_ns) { return Deadline(NowNs() + wait_ns); }
  static Deadline AfterUs(int64_t wait_us) { return AfterNs(wait_us * 1'000); }
  static Deadline AfterMs(int64_t wait_ms) { return AfterNs(wait_ms * 1'000'000); }

  int64_t AtNs() const { return at_ns_; }
  bool Expired() const { return NowNs() >= at_ns_; }

 private:
  explicit Deadline(int64_t at_ns) : at_ns_(at_ns) {}
  int64_t at_ns_;
};

}  // namespace outrider::base
