#include "moe/balanced_clusters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "moe/philox.h"

namespace outrider::moe {
namespace {

using testing::ElementsAre;

double Uniform(uint32_t seed, uint32_t i) {
  return static_cast<double>(Random64(seed, Use::kTest, 0, 0, i) >> 11) * 0x1p-53;
}

double Total(const std::vector<double>& costs, const std::vector<int64_t>& of, size_t clusters) {
  double total = 0;
  for (size_t i = 0; i < of.size(); ++i) total += costs[i * clusters + static_cast<size_t>(of[i])];
  return total;
}

// Tries every assignment with these sizes.
double BestTotal(const std::vector<double>& costs, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> of;
  for (size_t j = 0; j < sizes.size(); ++j) of.insert(of.end(), static_cast<size_t>(sizes[j]), static_cast<int64_t>(j));
  double best = std::numeric_limits<double>::infinity();
  do {
    best = std::min(best, Total(costs, of, sizes.size()));
  } while (std::ranges::next_permutation(of).found);
  return best;
}

TEST(BalancedAssignment, IsAsCheapAsTheBestOfAll) {
  const std::vector<std::vector<int64_t>> shapes = {{4, 4}, {3, 3, 3}, {2, 2, 2, 2}, {1, 5, 2}, {0, 4, 3}};
  for (const std::vector<int64_t>& sizes : shapes) {
    const int64_t points = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    for (uint32_t seed = 0; seed < 40; ++seed) {
      std::vector<double> costs;
      for (uint32_t i = 0; i < static_cast<uint32_t>(points) * sizes.size(); ++i) {
        // Every second case has few different costs, so many ties.
        costs.push_back(seed % 2 == 0 ? Uniform(seed, i) : std::floor(Uniform(seed, i) * 4));
      }
      const std::vector<int64_t> of = BalancedAssignment(costs, sizes);
      for (size_t j = 0; j < sizes.size(); ++j) {
        EXPECT_EQ(std::ranges::count(of, static_cast<int64_t>(j)), sizes[j]);
      }
      EXPECT_NEAR(Total(costs, of, sizes.size()), BestTotal(costs, sizes), 1e-9);
    }
  }
}

TEST(BalancedAssignment, ManyPointsKeepTheirSizes) {
  const std::vector<int64_t> sizes = {300, 100, 250, 250, 100};
  std::vector<double> costs;
  for (uint32_t i = 0; i < 5000; ++i) costs.push_back(i % 5 == 0 ? 0 : Uniform(3, i));
  const std::vector<int64_t> of = BalancedAssignment(costs, sizes);
  for (size_t j = 0; j < sizes.size(); ++j) EXPECT_EQ(std::ranges::count(of, static_cast<int64_t>(j)), sizes[j]);
  // No exchange of two points is a gain.
  for (size_t a = 0; a < of.size(); a += 7) {
    for (size_t b = 0; b < of.size(); b += 3) {
      const auto from = static_cast<size_t>(of[a]), to = static_cast<size_t>(of[b]);
      EXPECT_GE(costs[a * 5 + to] + costs[b * 5 + from], costs[a * 5 + from] + costs[b * 5 + to] - 1e-9);
    }
  }
}

// Points of the plane by their inner products.
std::vector<float> Products(const std::vector<std::pair<double, double>>& points) {
  std::vector<float> products;
  for (const auto& [ax, ay] : points) {
    for (const auto& [bx, by] : points) products.push_back(static_cast<float>(ax * bx + ay * by));
  }
  return products;
}

TEST(BalancedClusters, PlantedGroupsAreFoundWithTheirMiddles) {
  // Three groups of four around (10, 0), (0, 10), (-10, -10); the first of each is its middle.
  std::vector<std::pair<double, double>> points;
  for (const auto& [x, y] : std::vector<std::pair<double, double>>{{10, 0}, {0, 10}, {-10, -10}}) {
    for (const auto& [dx, dy] : std::vector<std::pair<double, double>>{{0, 0}, {1, 0}, {-0.5, 1}, {-0.5, -1}}) {
      points.emplace_back(x + dx, y + dy);
    }
  }
  const Clusters found = BalancedClusters(Products(points), std::vector<int64_t>{4, 4, 4}, 20);
  for (size_t i = 0; i < points.size(); ++i) EXPECT_EQ(found.of[i], found.of[i / 4 * 4]) << i;
  std::vector<int64_t> middles = found.representatives;
  std::ranges::sort(middles);
  EXPECT_THAT(middles, ElementsAre(0, 4, 8));
  EXPECT_LT(found.rounds, 20);
}

TEST(BalancedClusters, SizesHoldWhereTheGroupsAreUnequal) {
  std::vector<std::pair<double, double>> points;
  for (uint32_t i = 0; i < 30; ++i) points.emplace_back((i < 24 ? 5 : -5) + Uniform(1, i), Uniform(2, i));
  const Clusters found = BalancedClusters(Products(points), std::vector<int64_t>{15, 15}, 20);
  EXPECT_EQ(std::ranges::count(found.of, 0), 15);
  // The six of the small group stay together.
  for (size_t i = 24; i < 30; ++i) EXPECT_EQ(found.of[i], found.of[24]);
}

}  // namespace
}  // namespace outrider::moe
