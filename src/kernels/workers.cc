#include "kernels/workers.h"

#include "base/check.h"
#include "base/clock.h"

namespace outrider::kernels {
namespace {

// The phases of one call follow each other faster than a sleeping thread wakes, and so do the passes of a text that is
// being written, with the choice of a token between them; longer than this, somebody else needs the processor.
constexpr int64_t kSpinNs = 300'000;
constexpr int kPauses = 16;  // between two looks at the clock; a pause takes from 3 to 60 ns

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Returns once `value` differs from `old`.
void AwaitChange(const std::atomic<uint32_t>& value, uint32_t old) {
  const base::Deadline end = base::Deadline::AfterNs(kSpinNs);
  while (!end.Expired()) {
    for (int i = 0; i < kPauses; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      Pause();
    }
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

Workers::Workers(int threads) {
  OUTRIDER_CHECK(threads >= 1, threads, " threads");
  for (int worker = 1; worker < threads; ++worker) others_.emplace_back([this, worker] { Serve(worker); });
}

Workers::~Workers() {
  stop_.store(true, std::memory_order_relaxed);
  call_.fetch_add(1, std::memory_order_release);
  call_.notify_all();
  for (std::thread& thread : others_) thread.join();
}

void Workers::TakeTasks(int worker) {
  constexpr uint64_t kMask = (uint64_t{1} << kTaskBits) - 1;
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t task = ticket & kMask, tasks = ticket >> kTaskBits & kMask;
    if (task >= tasks) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    function_(context_, static_cast<int64_t>(task), worker);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void Workers::Serve(int worker) {
  for (;;) {
    const uint32_t seen = call_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    TakeTasks(worker);
    AwaitChange(call_, seen);
  }
}

void Workers::RunErased(int64_t tasks, const void* context, Function function) {
  if (others_.empty() || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) function(context, task, 0);
    return;
  }
  OUTRIDER_CHECK(tasks < int64_t{1} << kTaskBits, tasks, " tasks");
  function_ = function;
  context_ = context;
  left_.store(static_cast<uint32_t>(tasks), std::memory_order_relaxed);
  const uint32_t call = call_.load(std::memory_order_relaxed) + 1;
  ticket_.store(uint64_t{call} << 2 * kTaskBits | static_cast<uint64_t>(tasks) << kTaskBits, std::memory_order_release);
  call_.store(call, std::memory_order_release);
  call_.notify_all();
  TakeTasks(0);
  for (uint32_t left = left_.load(std::memory_order_acquire); left != 0; left = left_.load(std::memory_order_acquire))
    AwaitChange(left_, left);
}

}  // namespace outrider::kernels
