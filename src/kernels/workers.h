#pragma once
// A few threads that run the tasks of one call together. Which thread runs a task is not fixed, so tasks write disjoint
// memory, and results do not depend on the number of threads.

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

  void RunErased(int64_t tasks, const void* context, Function function);
  void Serve(int worker);
  void TakeTasks(int worker);

  std::vector<std::thread> others_;
  Function function_ = nullptr;  // null: the threads end
  const void* context_ = nullptr;
  int64_t tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> call_{0};     // counts calls; the threads wait for its change
  alignas(64) std::atomic<uint32_t> running_{0};  // threads that have not finished the call
};

}  // namespace outrider::kernels
