#include "kernels/workers.h"

#include <gtest/gtest.h>

#include <numeric>

namespace outrider::kernels {
namespace {

TEST(Workers, EveryTaskRunsOnceInEveryCall) {
  for (const int threads : {1, 2, 5}) {
    Workers workers(threads);
    ASSERT_EQ(workers.threads(), threads);
    for (int64_t tasks = 0; tasks < 200; ++tasks) {
      std::vector<int> runs(static_cast<size_t>(tasks), 0);
      std::vector<int64_t> by_worker(static_cast<size_t>(threads), 0);
      workers.Run(tasks, [&](int64_t task, int worker) {
        ++runs[static_cast<size_t>(task)];
        ++by_worker[static_cast<size_t>(worker)];
      });
      EXPECT_EQ(runs, std::vector<int>(static_cast<size_t>(tasks), 1));
      EXPECT_EQ(std::accumulate(by_worker.begin(), by_worker.end(), int64_t{0}), tasks);
    }
  }
}

// What one call wrote is seen by all threads of the next.
TEST(Workers, CallsFollowEachOther) {
  Workers workers(3);
  std::vector<int64_t> values(64, 0);
  for (int round = 0; round < 300; ++round) {
    workers.Run(64, [&](int64_t task, int) {
      const auto i = static_cast<size_t>(task);
      ++values[i];
    });
    std::vector<int64_t> next(64);
    workers.Run(64, [&](int64_t task, int) {
      next[static_cast<size_t>(task)] = values[static_cast<size_t>((task + 13) % 64)];
    });
    values = next;
  }
  EXPECT_EQ(values, std::vector<int64_t>(64, 300));
}

}  // namespace
}  // namespace outrider::kernels
