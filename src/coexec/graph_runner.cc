#include "coexec/graph_runner.h"

#include <pthread.h>

#include <chrono>

#include "seam/gil.h"
#include "seam/runner_scope.h"

namespace outrider::coexec {
namespace {

constexpr size_t kQueueMax = 1 << 13;  // jobs in flight
constexpr int64_t kIdleWakeMs = 1000;  // an idle runner looks around this often

}  // namespace

GraphRunner::GraphRunner(Timeline& timeline)
    : timeline_(timeline), ring_({.capacity = kQueueMax, .spin_ns = 20'000, .slot_wait_ms = options_.wait_deadline_ms}) {}

GraphRunner::~GraphRunner() { Stop(); }

void GraphRunner::Start() {
  if (!thread_.joinable()) thread_ = std::thread([this] { Loop(); });
}

void GraphRunner::Stop() {
  if (!thread_.joinable()) return;
  ring_.Stop();
  seam::GilRelease without_lock;
  thread_.join();
}

void GraphRunner::AbandonAfterFork() {
  abandoned_.store(true);
  if (thread_.joinable()) thread_.detach();
}

seam::Work& GraphRunner::NextSlot() { return ring_.Slot(); }
uint64_t GraphRunner::Submit() { return ring_.Push(); }

std::string GraphRunner::Cursors(uint64_t wanted) const {
  return "imperative runner at job " + std::to_string(ring_.Pushed()) + " waits for job " + std::to_string(wanted) +
         "; graph runner has completed job " + std::to_string(ring_.Done()) + " and is in " + running_op_.load();
}

void GraphRunner::Await(uint64_t sequence) {
  if (ring_.Done() >= sequence || abandoned_.load(std::memory_order_relaxed)) return;
  const int64_t start = base::NowNs();
  seam::GilRelease without_lock;
  const bool done = ring_.WaitDone(sequence, base::Deadline::AfterMs(options_.wait_deadline_ms));
  const int64_t waited = base::NowNs() - start;
  host_wait_ns_.fetch_add(waited, std::memory_order_relaxed);
  timeline_.Add("wait", SpanKind::kWait, SpanThread::kImperative, start, waited);
  TORCH_CHECK(done, "outrider: no answer from the graph runner within ", options_.wait_deadline_ms, " ms; ", Cursors(sequence));
}

void GraphRunner::WaitQuietly(uint64_t sequence) { Await(sequence); }

void GraphRunner::WaitFor(uint64_t sequence) {
  Await(sequence);
  RethrowError();
}

void GraphRunner::RethrowError() {
  if (!failed_.load(std::memory_order_acquire)) return;
  Await(ring_.Pushed());  // what was queued behind the failure is skipped; only then may new work run
  std::exception_ptr error = std::move(error_);
  error_ = nullptr;
  failed_.store(false, std::memory_order_release);
  std::rethrow_exception(error);
}

void GraphRunner::RunOne(seam::Work& work) {
  if (work.thread_state != nullptr) work.thread_state->Adopt();
  if (const int64_t delay = options_.delay_us.load(std::memory_order_relaxed); delay > 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(delay));
  }
  if (failed_.load(std::memory_order_relaxed)) return;
  if (work.op != nullptr) {
    running_op_.store(work.op->name.c_str(), std::memory_order_relaxed);
    seam::ExecuteOp(work);
  }
  if (work.part != nullptr) {
    running_op_.store("a part of the outer lane", std::memory_order_relaxed);
    work.part->Run();
    if (work.part->capture_ns > 0) {
      timeline_.Add("capture", SpanKind::kCapture, SpanThread::kGraphRunner, work.part->capture_start_ns, work.part->capture_ns);
    }
  }
}

void GraphRunner::Loop() {
  pthread_setname_np(pthread_self(), "outrider-graph");
  seam::RunnerScope scope;
  while (true) {
    const uint64_t ready = ring_.WaitForWork(base::Deadline::AfterMs(kIdleWakeMs));
    if (ready == 0) {
      if (ring_.Stopped()) return;
      continue;
    }
    const int64_t start = base::NowNs();
    for (uint64_t i = 0; i < ready; ++i) {
      seam::Work& work = ring_.Front();
      try {
        RunOne(work);
      } catch (...) {
        error_ = std::current_exception();
        failed_.store(true, std::memory_order_release);
      }
      work.Clear();
      ring_.PopFront();
    }
    const int64_t busy = base::NowNs() - start;
    busy_ns_.fetch_add(busy, std::memory_order_relaxed);
    timeline_.Add("run", SpanKind::kRun, SpanThread::kGraphRunner, start, busy);
  }
}

}  // namespace outrider::coexec
