#pragma once
// A few threads that run the tasks of one call together. Which thread runs a task is not fixed, so tasks write disjoint
// memory, and results do not depend on the number of threads. A call ends when its tasks are done: a thread that gets
// no processor holds up nobody unless it holds a task.

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace outrider::kernels {

class Workers {
 public:
  // threads >= 1; the caller of Run is one of them.
  explicit Workers(int threads);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int threads() const { return static_cast<int>(others_.size()) + 1; }

  // body(task, worker) for each task in [0, tasks), 0 <= worker < threads(); returns when all are done. Body must not
  // throw. One caller at a time.
  template <class Body>
  void Run(int64_t tasks, const Body& body) {
    RunErased(tasks, &body, [](const void* context, int64_t task, int worker) {
      (*static_cast<const Body*>(context))(task, worker);
    });
  }

 private:
  using Function = void (*)(const void* context, int64_t task, int worker);

  static constexpr int kTaskBits = 20;  // a call has fewer than 2^20 tasks

  void RunErased(int64_t tasks, const void* context, Function function);
  void Serve(int worker);
  void TakeTasks(int worker);

  std::vector<std::thread> others_;
  // Of the call under way. Read only by who holds a task of it, so nobody reads them while they change.
  Function function_ = nullptr;
  const void* context_ = nullptr;
  // The next task and, above it, the number of tasks; above both the low bits of call_, so that a thread that comes
  // late cannot take a task of another call by mistake.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> call_{0};  // counts calls; the threads wait for its change
  alignas(64) std::atomic<uint32_t> left_{0};  // tasks of the call that are not done
  std::atomic<bool> stop_{false};
};

}  // namespace outrider::kernels
