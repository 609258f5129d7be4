#include "sampling/logprobs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "unit/sampling/rows.h"

namespace outrider::sampling {
namespace {

TEST(Logprobs, OfTokenAndTheMostLikely) {
  const std::array<float, 4> logits = {0.0F, std::log(2.0F), std::log(4.0F), std::log(2.0F) - 0.0F};
  const Logprobs found = LogprobsOf(logits, 0, 3);
  EXPECT_FLOAT_EQ(found.of_token, std::log(1.0F / 9));
  ASSERT_EQ(found.top.size(), 3u);
  EXPECT_EQ(found.top[0].first, 2);
  EXPECT_EQ(found.top[1].first, 1) << "the lowest id among equals";
  EXPECT_EQ(found.top[2].first, 3);
  EXPECT_FLOAT_EQ(found.top[0].second, std::log(4.0F / 9));
}

TEST(Logprobs, LargeLogitsStayFinite) {
  const std::array<float, 2> logits = {3e38F, -3e38F};
  EXPECT_FLOAT_EQ(LogprobsOf(logits, 0, 0).of_token, 0.0F);
  EXPECT_TRUE(LogprobsOf(logits, 0, 0).top.empty());
  EXPECT_EQ(LogprobsOf(logits, 1, 9).top.size(), 2u);
}

TEST(Logprobs, AreThoseOfDoublePrecision) {
  std::mt19937 random(1);
  for (int i = 0; i < 140; ++i) {
    const std::vector<float> logits = RandomRow(random, RandomSize(random), i % kRowKinds);
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - largest);
    const double whole = largest + std::log(sum);
    const auto token = static_cast<int32_t>(random() % logits.size());
    const int64_t top = std::array{0, 1, 5, 20, 5010}[random() % 5];
    const Logprobs found = LogprobsOf(logits, token, top);
    const double exact = logits[static_cast<size_t>(token)] - whole;
    EXPECT_NEAR(found.of_token, exact, 2e-6 - 1e-7 * exact);
    std::vector<int32_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    ASSERT_EQ(std::ssize(found.top), std::min(top, std::ssize(logits)));
    for (size_t rank = 0; rank < found.top.size(); ++rank) {
      EXPECT_EQ(found.top[rank].first, ids[rank]);
      const double likely = logits[static_cast<size_t>(ids[rank])] - whole;
      EXPECT_NEAR(found.top[rank].second, likely, 2e-6 - 1e-7 * likely);
    }
  }
}

}  // namespace
}  // namespace outrider::sampling
