#pragma once
// The graph runner: one thread that executes work in program order and never takes the interpreter lock.

#include <atomic>
#include <exception>
#include <mutex>
#include <string>
#include <thread>

#include "base/spsc_ring.h"
#include "coexec/timeline.h"
#include "seam/work.h"

namespace outrider::coexec {

struct RunnerOptions {
  int64_t wait_deadline_ms = 600'000;    // a wait that lasts longer is reported as a hang
  std::atomic<int64_t> delay_us{0};      // tests: slows every job down
};

class GraphRunner final : public seam::WorkQueue {
 public:
  explicit GraphRunner(Timeline& timeline);
  ~GraphRunner() override;

  void Start();
  // Completes what is queued and joins the thread.
  void Stop();
  // In the child of a fork the thread does not exist: waits answer at once, nothing can be submitted.
  void AbandonAfterFork();

  seam::Work& NextSlot() override;
  uint64_t Submit() override;
  uint64_t NextSequence() const override { return ring_.Pushed() + 1; }
  bool Idle() const override { return ring_.Done() == ring_.Pushed(); }
  bool Done(uint64_t sequence) const override { return ring_.Done() >= sequence; }
  void WaitFor(uint64_t sequence) override;
  void WaitAll() override { WaitFor(ring_.Pushed()); }
  // Bounds the run-ahead: waits until job `sequence` is done, without rethrowing.
  void WaitQuietly(uint64_t sequence);
  void RethrowError();

  RunnerOptions& Options() { return options_; }
  int64_t TakeHostWaitNs() { return host_wait_ns_.exchange(0, std::memory_order_relaxed); }
  int64_t TakeBusyNs() { return busy_ns_.exchange(0, std::memory_order_relaxed); }

 private:
  void Loop();
  void RunOne(seam::Work& work);
  void Await(uint64_t sequence);
  std::string Cursors(uint64_t wanted) const;

  Timeline& timeline_;
  base::SpscRing<seam::Work> ring_;
  RunnerOptions options_;
  std::thread thread_;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // written by the runner before `failed_`, cleared by the imperative thread when idle
  std::atomic<const char*> running_op_{""};
  std::atomic<int64_t> host_wait_ns_{0};
  std::atomic<int64_t> busy_ns_{0};
  std::atomic<bool> abandoned_{false};
};

}  // namespace outrider::coexec
