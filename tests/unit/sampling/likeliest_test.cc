#include "sampling/likeliest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "unit/sampling/rows.h"

namespace outrider::sampling {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(Likeliest, IsTheFirstOfTheLargest) {
  std::mt19937 random(1);
  for (int i = 0; i < 700; ++i) {
    const std::vector<float> logits = RandomRow(random, RandomSize(random), i % kRowKinds);
    EXPECT_EQ(LikeliestId(logits), std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
}

TEST(Likeliest, IsFoundAtEveryPlace) {
  for (const size_t size : {1, 5, 16, 30, 512, 1100})
    for (size_t at = 0; at < size; ++at) {
      std::vector<float> logits(size, -3e38F);
      logits[at] = -2e38F;
      EXPECT_EQ(LikeliestId(logits), static_cast<int64_t>(at));
    }
}

TEST(Likeliest, NoneIfALogitIsNotFinite) {
  std::mt19937 random(2);
  for (const size_t size : {1, 5, 16, 30, 512, 1100})
    for (size_t at = 0; at < size; ++at) {
      std::vector<float> logits = RandomRow(random, size, 0);
      for (const float bad : {kInfinity, -kInfinity, kNaN, -kNaN}) {
        logits[at] = bad;
        EXPECT_EQ(LikeliestId(logits), -1);
      }
    }
}

TEST(Likeliest, ZerosAreEqualAndExtremesFinite) {
  for (const size_t between : {1, 20, 600}) {
    std::vector<float> logits(between + 2, -1e-45F);
    logits.front() = -0.0F;
    logits.back() = 0.0F;
    EXPECT_EQ(LikeliestId(logits), 0);
    std::swap(logits.front(), logits.back());
    EXPECT_EQ(LikeliestId(logits), 0);
    logits.front() = std::numeric_limits<float>::lowest();
    logits.back() = std::numeric_limits<float>::max();
    EXPECT_EQ(LikeliestId(logits), static_cast<int64_t>(between + 1));
  }
  EXPECT_THROW(LikeliestId({}), base::CheckError);
}

}  // namespace
}  // namespace outrider::sampling
