#include "moe/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "base/check.h"
#include "moe/philox.h"
#include "moe/routes.h"

namespace outrider::moe {
namespace {

using testing::ElementsAre;

TEST(Schedule, EightPublishedRounds) {
  const Cosine cosine{.peak = 5e-5, .steps = 200};
  double peak = 5e-5;
  for (int64_t round = 0; round < 8; ++round, peak *= 0.8) {
    EXPECT_NEAR(LearningRate(cosine, round, 0), peak, 1e-18);
    EXPECT_NEAR(LearningRate(cosine, round, 100), peak / 2, 1e-18);
    EXPECT_NEAR(LearningRate(cosine, round, 50), peak * (0.5 + std::sqrt(0.125)), 1e-18);
    EXPECT_GT(LearningRate(cosine, round, 199), 0);
    for (int64_t step = 1; step < 200; ++step) {
      EXPECT_LT(LearningRate(cosine, round, step), LearningRate(cosine, round, step - 1));
    }
  }
  EXPECT_THROW(LearningRate(cosine, 0, 200), base::CheckError);
}

TEST(Schedule, WarmUpAndFloor) {
  const Cosine cosine{.peak = 1, .steps = 14, .warmup = 4, .floor = 0.1};
  EXPECT_DOUBLE_EQ(LearningRate(cosine, 0, 0), 0.25);
  EXPECT_DOUBLE_EQ(LearningRate(cosine, 0, 3), 1);
  EXPECT_DOUBLE_EQ(LearningRate(cosine, 0, 4), 1);
  EXPECT_DOUBLE_EQ(LearningRate(cosine, 0, 9), 0.55);
}

TEST(Philox, KnownAnswers) {  // the published test vectors of Philox4x32-10
  EXPECT_EQ(Philox(0, {0, 0, 0, 0}), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox(~uint64_t{0}, {~0U, ~0U, ~0U, ~0U}), (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox(0x299f31d0a4093822, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, DrawsAreInRangeAndDifferByUse) {
  std::set<uint64_t> seen;
  for (uint32_t i = 0; i < 1000; ++i) {
    EXPECT_LT(Below(Random64(1, Use::kTest, 0, 0, i), 7), 7);
    seen.insert(Random64(1, Use::kTest, 0, 0, i));
    seen.insert(Random64(1, Use::kExpert, 0, 0, i));
  }
  EXPECT_EQ(seen.size(), 2000);
}

TEST(Routes, HighestLogitWinsAndTiesGoToTheLowestIndex) {
  EXPECT_THAT(Route(std::vector<float>{0, 1, 1, /**/ 2, 2, 2, /**/ 0, 0, 3}, 3, 0), ElementsAre(1, 0, 2));
}

TEST(Routes, HysteresisSwitchesOnlyForALeadOfTau) {
  const std::vector<float> logits = {1, 0, /**/ 0, 1.5, /**/ 0, 2, /**/ 1, 0};
  EXPECT_THAT(Route(logits, 2, 0), ElementsAre(0, 1, 1, 0));
  EXPECT_THAT(Route(logits, 2, 2), ElementsAre(0, 0, 1, 1));
  EXPECT_THAT(Route(logits, 2, 2, 1), ElementsAre(1, 1, 1, 1));
}

TEST(Routes, HysteresisInPiecesIsHysteresisInOne) {
  std::vector<float> logits;
  for (uint32_t i = 0; i < 300; ++i)
    logits.push_back(static_cast<float>(Random64(5, Use::kTest, 0, 0, i) % 1000) / 100);
  const std::vector<int64_t> whole = Route(logits, 3, 4);
  int64_t previous = -1;
  for (size_t t = 0; t < whole.size(); ++t) {
    previous = Route(std::span(logits).subspan(3 * t, 3), 3, 4, previous)[0];
    EXPECT_EQ(previous, whole[t]);
  }
}

TEST(Routes, Statistics) {
  RouteStats stats(3);
  stats.Add(std::vector<int64_t>{0, 0, 0, 1, 2, 2});
  stats.Add(std::vector<int64_t>{2});
  EXPECT_THAT(stats.load, ElementsAre(3, 1, 3));
  EXPECT_EQ(stats.pairs, 5);
  EXPECT_EQ(stats.stays, 3);
  EXPECT_THAT(stats.run_lengths, ElementsAre(2, 2));  // runs of 3, 1, 2 and 1
  RouteStats even(2);
  even.Add(std::vector<int64_t>{0, 1, 1, 0});
  EXPECT_DOUBLE_EQ(even.Entropy(), 1);
  RouteStats one(2);
  one.Add(std::vector<int64_t>{1, 1});
  EXPECT_DOUBLE_EQ(one.Entropy(), 0);
}

}  // namespace
}  // namespace outrider::moe
