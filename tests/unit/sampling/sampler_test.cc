#include "sampling/sampler.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <set>

namespace outrider::sampling {
namespace {

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
  const std::array<float, 4> logits = {0.5F, 2.0F, 2.0F, -1.0F};
  EXPECT_EQ(PickToken(logits, {}, 0), 1);
}

TEST(Sampler, NothingIsDrawnFromWhatIsNoNumber) {
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    const std::array<float, 4> logits = {0.5F, 2.0F, bad, -1.0F};
    for (const double temperature : {0.0, 1.0}) {
      EXPECT_EQ(PickToken(logits, {.temperature = temperature}, 0), -1) << bad;
      EXPECT_EQ(PickToken(logits, {.temperature = temperature, .top_k = 2, .top_p = 0.9}, 0), -1) << bad;
    }
  }
}

TEST(Sampler, DrawsFollowTheProbabilities) {
  const std::array<float, 3> logits = {0.0F, std::log(2.0F), std::log(5.0F)};
  std::array<int, 3> drawn{};
  constexpr int kDraws = 16'000;
  for (int i = 0; i < kDraws; ++i) ++drawn[PickToken(logits, {.temperature = 1, .seed = 7}, i)];
  EXPECT_NEAR(drawn[0], kDraws / 8.0, 5 * std::sqrt(kDraws / 8.0));
  EXPECT_NEAR(drawn[1], kDraws / 4.0, 5 * std::sqrt(kDraws / 4.0));
}

TEST(Sampler, TopKAndTopPLimitTheChoice) {
  const std::array<float, 5> logits = {1.0F, 3.0F, 2.0F, 3.0F, 0.0F};
  std::set<int64_t> by_k, by_p;
  for (int i = 0; i < 500; ++i) {
    by_k.insert(PickToken(logits, {.temperature = 5, .top_k = 3}, i));
    by_p.insert(PickToken(logits, {.temperature = 1, .top_p = 0.5}, i));
  }
  EXPECT_EQ(by_k, (std::set<int64_t>{1, 2, 3}));
  EXPECT_EQ(by_p, (std::set<int64_t>{1, 3}));
}

TEST(Sampler, ALongTailIsDrawnAsOften) {
  std::array<float, 1000> logits = {};
  logits[7] = std::log(1000.0F);
  int likely = 0;
  constexpr int kDraws = 4'000;
  for (int i = 0; i < kDraws; ++i) {
    const int64_t by_p = PickToken(logits, {.temperature = 1, .top_p = 0.999999, .seed = 5}, i);
    likely += by_p == 7 ? 1 : 0;
  }
  EXPECT_NEAR(likely, kDraws / 2.0, 5 * std::sqrt(kDraws / 4.0));
}

TEST(Sampler, SeedAndStepDecide) {
  const std::array<float, 8> logits = {};
  std::set<int64_t> seen;
  for (uint64_t step = 0; step < 64; ++step) {
    const Sampling sampling{.temperature = 1, .seed = 3};
    const int64_t id = PickToken(logits, sampling, step);
    EXPECT_EQ(id, PickToken(logits, sampling, step));
    seen.insert(id);
  }
  EXPECT_GT(seen.size(), 4u);
}

}  // namespace
}  // namespace outrider::sampling
