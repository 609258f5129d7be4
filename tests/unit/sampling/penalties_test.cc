#include "sampling/penalties.h"

#include <gtest/gtest.h>

#include <array>

namespace outrider::sampling {
namespace {

TEST(Penalties, EachTouchesItsOwnTokens) {
  TokenCounts counts;
  counts.AddPrompt(std::array<int32_t, 2>{0, 1});
  counts.AddWritten(1);
  counts.AddWritten(2);
  counts.AddWritten(2);
  std::array<float, 4> logits = {4, -4, 4, 4};
  counts.Apply({.presence = 1, .frequency = 0.5, .repetition = 2}, logits);
  EXPECT_EQ(logits, (std::array<float, 4>{2, -9.5, 0, 4}));
}

TEST(Penalties, NoneChangesNothing) {
  TokenCounts counts;
  counts.AddWritten(0);
  std::array<float, 2> logits = {0.1F, -0.3F};
  const auto before = logits;
  counts.Apply({}, logits);
  EXPECT_EQ(logits, before);
  EXPECT_TRUE(Penalties{}.None());
  EXPECT_FALSE((Penalties{.presence = 1}.None()));
}

}  // namespace
}  // namespace outrider::sampling
