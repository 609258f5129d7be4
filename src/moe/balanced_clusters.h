#pragma once
// Clusters of given sizes over points that are known by their inner products alone.

#include <cstdint>
#include <span>
#include <vector>

namespace outrider::moe {

// The cheapest way to give each of n points to one of N clusters with room for sizes[j] points: costs [n, N], the sum
// of sizes is n. Exact (successive shortest paths); N is small. Returns the cluster of each point.
std::vector<int64_t> BalancedAssignment(std::span<const double> costs, std::span<const int64_t> sizes);

struct Clusters {
  std::vector<int64_t> of;               // cluster of each point
  std::vector<int64_t> representatives;  // per cluster, the member that is nearest to its mean
  int64_t rounds = 0;                    // until no point moved, or the most that were allowed
};

// Lloyd iterations by squared distance with exact sizes, from points that are far from each other, the first one the
// longest. products [n, n]: inner products. Deterministic; ties go to the lowest index.
Clusters BalancedClusters(std::span<const float> products, std::span<const int64_t> sizes, int64_t rounds_max);

}  // namespace outrider::moe
