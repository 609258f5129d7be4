#include "sampling/weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "unit/sampling/rows.h"

namespace outrider::sampling {
namespace {

double Exact(float logit, float largest, double temperature) {
  return std::exp((static_cast<double>(logit) - static_cast<double>(largest)) / temperature);
}

TEST(Weights, AreThoseOfDoublePrecision) {
  std::mt19937 random(1);
  for (int i = 0; i < 420; ++i) {
    const double temperature = std::array{1.0, 0.1, 0.7, 1.5, 100.0, 1e-6, 1e-310}[static_cast<size_t>(i) / 7 % 7];
    const std::vector<float> logits = RandomRow(random, RandomSize(random), i % kRowKinds);
    const Weigher weigher(*std::max_element(logits.begin(), logits.end()), temperature);
    std::vector<float> weights(logits.size());
    weigher.Weigh(logits, weights.data());
    double sum = 0;
    for (size_t id = 0; id < logits.size(); ++id) {
      const double exact = Exact(logits[id], weigher.largest(), temperature);
      sum += exact;
      EXPECT_NEAR(weights[id], exact, exact * (1e-6 - 3e-7 * std::log(std::max(exact, 1e-38))) + 2e-38);
      if (logits[id] == weigher.largest()) {
        EXPECT_EQ(weights[id], 1);
      }
    }
    EXPECT_NEAR(weigher.Sum(logits), sum, 1e-6 * sum);
  }
}

TEST(Weights, DoNotDependOnTheirPlace) {
  std::mt19937 random(2);
  const std::vector<float> logits = RandomRow(random, 37, 0);
  const Weigher weigher(*std::max_element(logits.begin(), logits.end()), 0.8);
  std::vector<float> weights(logits.size());
  weigher.Weigh(logits, weights.data());
  for (size_t id = 0; id < logits.size(); ++id) {
    float weight = 0;
    weigher.Weigh({&logits[id], 1}, &weight);
    EXPECT_EQ(weight, weights[id]);
    EXPECT_EQ(weigher.Sum({&logits[id], 1}), static_cast<double>(weight));
  }
}

TEST(Weights, OfSmallDifferencesAtSmallTemperatures) {
  for (const double temperature : {1e-310, 1e-44, 1e-40, 1e-30, 1e-18, 1e-15}) {
    const auto near = static_cast<float>(-temperature);
    for (const float logit : {near, 2 * near, -1e-45F, -1e-30F, -1e-6F, -1.0F, -3e38F}) {
      float weight = -1;
      Weigher(0, temperature).Weigh({&logit, 1}, &weight);
      EXPECT_NEAR(weight, Exact(logit, 0, temperature), 1e-6) << logit << " at " << temperature;
    }
  }
}

TEST(Weights, NothingBelowTheSmallestAndOfWhatIsNoNumber) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::array<float, 5> logits = {-87.5F, -1e30F, -3e38F, -kInfinity, std::numeric_limits<float>::quiet_NaN()};
  std::array<float, 5> weights = {};
  Weigher(0, 1).Weigh(logits, weights.data());
  EXPECT_EQ(weights, (std::array<float, 5>{}));
  EXPECT_EQ(Weigher(0, 1).Sum(logits), 0);
  EXPECT_EQ(Weigher(3e38F, 1).Sum(std::array{3e38F, -3e38F}), 1);
}

}  // namespace
}  // namespace outrider::sampling
