#include "kernels/workers.h"

#include "base/check.h"
#include "base/clock.h"

namespace outrider::kernels {
namespace {

// The phases of one call follow each other faster than a sleeping thread wakes; longer than this, somebody else needs
// the processor.
constexpr int64_t kSpinNs = 50'000;
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
  function_ = nullptr;
  call_.fetch_add(1, std::memory_order_release);
  call_.notify_all();
  for (std::thread& thread : others_) thread.join();
}

void Workers::TakeTasks(int worker) {
  for (;;) {
    const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks_) return;
    function_(context_, task, worker);
  }
}

void Workers::Serve(int worker) {
  for (uint32_t seen = 0;; ++seen) {
    AwaitChange(call_, seen);
    if (function_ == nullptr) return;
    TakeTasks(worker);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

void Workers::RunErased(int64_t tasks, const void* context, Function function) {
  function_ = function;
  context_ = context;
  tasks_ = tasks;
  next_.store(0, std::memory_order_relaxed);
  if (!others_.empty() && tasks > 1) {
    running_.store(static_cast<uint32_t>(others_.size()), std::memory_order_relaxed);
    call_.fetch_add(1, std::memory_order_release);
    call_.notify_all();
    TakeTasks(0);
    for (uint32_t left = running_.load(std::memory_order_acquire); left != 0;
         left = running_.load(std::memory_order_acquire))
      AwaitChange(running_, left);
    return;
  }
  for (int64_t task = 0; task < tasks; ++task) function(context, task, 0);
}

}  // namespace outrider::kernels
