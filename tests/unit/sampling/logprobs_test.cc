#include "sampling/logprobs.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

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

}  // namespace
}  // namespace outrider::sampling
