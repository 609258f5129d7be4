#include "moe/layer_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/check.h"
#include "moe/philox.h"

namespace outrider::moe {
namespace {

using testing::ElementsAre;

double Value(const std::vector<std::vector<double>>& scores, const std::vector<double>& weights,
             const std::vector<int64_t>& kept) {
  double value = 0;
  for (size_t l = 0; l < scores.size(); ++l) {
    std::vector<double> sorted = scores[l];
    std::ranges::sort(sorted, std::greater<>());
    const double sum = std::accumulate(sorted.begin(), sorted.end(), 0.0);
    value += weights[l] * std::accumulate(sorted.begin(), sorted.begin() + kept[l], 0.0) / sum;
  }
  return value;
}

TEST(ShareOut, HandMade) {
  // A layer with one strong channel, and one with equal ones.
  const std::vector<std::vector<double>> scores = {{97, 1, 1, 1}, {1, 1, 1, 1}};
  EXPECT_THAT(ShareOut(scores, {1, 1}, {.total = 4, .least = 1}), ElementsAre(1, 3));
  EXPECT_THAT(ShareOut(scores, {1, 0}, {.total = 4, .least = 1}), ElementsAre(3, 1));
  EXPECT_THAT(ShareOut(scores, {1, 1}, {.total = 8, .least = 1}), ElementsAre(4, 4));
  EXPECT_THAT(ShareOut(scores, {1, 1}, {.total = 5, .least = 1, .step = 2}), ElementsAre(1, 4));
  EXPECT_THROW(ShareOut(scores, {1, 1}, {.total = 9, .least = 1}), base::CheckError);
  EXPECT_THROW(ShareOut(scores, {1, 1}, {.total = 3, .least = 2}), base::CheckError);
}

TEST(ShareOut, IsTheBestOfAll) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::vector<std::vector<double>> scores(3);
    std::vector<double> weights;
    uint32_t draw = 0;
    const auto next = [&] { return static_cast<double>(Random64(seed, Use::kTest, 0, 0, draw++) % 1000); };
    for (auto& layer : scores) {
      for (int c = 0; c < 6; ++c) layer.push_back(next() + 1);
      weights.push_back(next());
    }
    for (int64_t total = 3; total <= 18; ++total) {
      const std::vector<int64_t> kept = ShareOut(scores, weights, {.total = total, .least = 1});
      EXPECT_EQ(std::accumulate(kept.begin(), kept.end(), int64_t{0}), total);
      double best = 0;
      for (int64_t a = 1; a <= 6; ++a) {
        for (int64_t b = 1; b <= 6; ++b) {
          const int64_t c = total - a - b;
          if (c >= 1 && c <= 6) best = std::max(best, Value(scores, weights, {a, b, c}));
        }
      }
      EXPECT_NEAR(Value(scores, weights, kept), best, 1e-9 * best + 1e-12);
    }
  }
}

}  // namespace
}  // namespace outrider::moe
