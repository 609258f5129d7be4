// Likeliest ids of rows on the CPU (tests/support/cuda_on_cpu).
#include "kernels/cuda/likeliest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "block.h"

namespace outrider::kernels::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<int64_t> Of(const std::vector<float>& logits, int vocab) {
  std::vector<int64_t> best(logits.size() / static_cast<size_t>(vocab), 99);
  EXPECT_EQ(FindLikeliest(logits.data(), static_cast<int>(best.size()), vocab, best.data(), nullptr), cudaSuccess);
  return best;
}

TEST(Likeliest, IsTheLargestAndTheLowestOfEquals) {
  std::mt19937 random(3);
  for (const int vocab : {1, 31, 1024, 3001}) {
    std::vector<float> logits(static_cast<size_t>(vocab) * 5);
    for (float& logit : logits) logit = static_cast<float>(random() % 50) - 60;  // all below 0, many equal
    logits[0] = 0.0F, logits[static_cast<size_t>(vocab) - 1] = -0.0F;
    const auto best = Of(logits, vocab);
    for (int row = 0; row < 5; ++row) {
      const auto from = logits.begin() + row * vocab;
      EXPECT_EQ(best[static_cast<size_t>(row)], std::max_element(from, from + vocab) - from) << vocab << " " << row;
    }
  }
}

TEST(Likeliest, ARowWithSomethingElseThanNumbersHasNone) {
  for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t place : {0, 1023, 1024, 1999}) {
      std::vector<float> logits(6000, -1);
      logits[2000 + place] = bad;
      logits[100] = logits[5999] = 1;
      EXPECT_EQ(Of(logits, 2000), (std::vector<int64_t>{100, -1, 1999})) << bad << " at " << place;
    }
  }
  EXPECT_EQ(Of(std::vector<float>(7, -kInfinity), 7), (std::vector<int64_t>{-1}));
}

TEST(Likeliest, NothingToLookAtIsRefused) {
  int64_t best = 0;
  const float logit = 0;
  EXPECT_EQ(FindLikeliest(&logit, 0, 1, &best, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(FindLikeliest(&logit, 1, 0, &best, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace outrider::kernels::cuda
