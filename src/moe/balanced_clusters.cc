#include "moe/balanced_clusters.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <queue>
#include <utility>

#include "base/check.h"

namespace outrider::moe {
namespace {

constexpr double kFar = std::numeric_limits<double>::infinity();

// Min-cost flow from points to clusters. A point that comes in may push others from cluster to cluster; the cheapest
// push from a to b is the least cost[p][b] - cost[p][a] over the members p of a.
class Assignment {
 public:
  Assignment(std::span<const double> costs, std::span<const int64_t> sizes)
      : costs_(costs), room_(sizes.begin(), sizes.end()), clusters_(sizes.size()) {
    of_.assign(costs.size() / clusters_, clusters_);
    pushes_.resize(clusters_ * clusters_);
  }

  std::vector<int64_t> Run() {
    for (size_t point = 0; point < of_.size(); ++point) Insert(point);
    return {of_.begin(), of_.end()};
  }

 private:
  struct Push {
    double cost;
    size_t point;
    bool operator>(const Push& other) const { return cost != other.cost ? cost > other.cost : point > other.point; }
  };
  using Heap = std::priority_queue<Push, std::vector<Push>, std::greater<>>;

  double Cost(size_t point, size_t cluster) const { return costs_[point * clusters_ + cluster]; }

  void Put(size_t point, size_t cluster) {
    of_[point] = cluster;
    for (size_t to = 0; to < clusters_; ++to) {
      if (to != cluster) pushes_[cluster * clusters_ + to].push({Cost(point, to) - Cost(point, cluster), point});
    }
  }

  // Members that have left are dropped when they come up.
  const Push* Cheapest(size_t from, size_t to) {
    Heap& heap = pushes_[from * clusters_ + to];
    while (!heap.empty() && of_[heap.top().point] != from) heap.pop();
    return heap.empty() ? nullptr : &heap.top();
  }

  void Insert(size_t point) {
    std::vector<double> distance;
    for (size_t j = 0; j < clusters_; ++j) distance.push_back(Cost(point, j));
    std::vector<size_t> before(clusters_, clusters_);
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t from = 0; from < clusters_; ++from) {
        for (size_t to = 0; to < clusters_; ++to) {
          const Push* push = from == to ? nullptr : Cheapest(from, to);
          if (push == nullptr || !(distance[from] + push->cost < distance[to] - kLeast)) continue;
          distance[to] = distance[from] + push->cost;
          before[to] = from;
          changed = true;
        }
      }
    }
    size_t best = clusters_;
    for (size_t j = 0; j < clusters_; ++j) {
      if (room_[j] > 0 && (best == clusters_ || distance[j] < distance[best])) best = j;
    }
    --room_[best];
    for (size_t to = best; before[to] != clusters_; to = before[to]) Put(Cheapest(before[to], to)->point, to);
    size_t first = best;
    while (before[first] != clusters_) first = before[first];
    Put(point, first);
  }

  static constexpr double kLeast = 1e-9;  // below it, rounding could make a push and its reverse both look cheap

  std::span<const double> costs_;
  std::vector<int64_t> room_;
  size_t clusters_;
  std::vector<size_t> of_;
  std::vector<Heap> pushes_;  // [from, to]
};

class Lloyd {
 public:
  Lloyd(std::span<const float> products, std::span<const int64_t> sizes)
      : products_(products), sizes_(sizes), points_(std::accumulate(sizes.begin(), sizes.end(), int64_t{0})) {
    OUTRIDER_CHECK(static_cast<int64_t>(products.size()) == points_ * points_, products.size(), " products");
  }

  Clusters Run(int64_t rounds_max) {
    Clusters out;
    out.of = BalancedAssignment(ToStarts(), sizes_);
    for (; out.rounds < rounds_max; ++out.rounds) {
      std::vector<int64_t> next = BalancedAssignment(ToMeans(out.of), sizes_);
      if (next == out.of) break;
      out.of = std::move(next);
    }
    const std::vector<double> distances = ToMeans(out.of);
    out.representatives.assign(sizes_.size(), -1);
    for (int64_t i = 0; i < points_; ++i) {
      int64_t& best = out.representatives[static_cast<size_t>(out.of[static_cast<size_t>(i)])];
      if (best < 0 ||
          At(distances, i, out.of[static_cast<size_t>(i)]) < At(distances, best, out.of[static_cast<size_t>(i)])) {
        best = i;
      }
    }
    return out;
  }

 private:
  int64_t Count() const { return static_cast<int64_t>(sizes_.size()); }
  double Product(int64_t i, int64_t j) const { return products_[static_cast<size_t>(i * points_ + j)]; }
  double At(const std::vector<double>& distances, int64_t point, int64_t cluster) const {
    return distances[static_cast<size_t>(point * Count() + cluster)];
  }
  double Distance(int64_t i, int64_t j) const { return Product(i, i) + Product(j, j) - 2 * Product(i, j); }

  std::vector<double> ToStarts() const {
    std::vector<int64_t> starts;
    std::vector<double> nearest(static_cast<size_t>(points_), kFar);
    for (int64_t j = 0; j < Count(); ++j) {
      int64_t next = 0;
      for (int64_t i = 1; i < points_; ++i) {
        const bool further = j == 0 ? Product(i, i) > Product(next, next)
                                    : nearest[static_cast<size_t>(i)] > nearest[static_cast<size_t>(next)];
        next = further ? i : next;
      }
      starts.push_back(next);
      for (int64_t i = 0; i < points_; ++i) {
        nearest[static_cast<size_t>(i)] = std::min(nearest[static_cast<size_t>(i)], Distance(i, next));
      }
    }
    std::vector<double> costs;
    for (int64_t i = 0; i < points_; ++i) {
      for (const int64_t start : starts) costs.push_back(Distance(i, start));
    }
    return costs;
  }

  // Squared distances [n, N] to the means of the clusters.
  std::vector<double> ToMeans(const std::vector<int64_t>& of) const {
    std::vector<double> costs(static_cast<size_t>(points_ * Count()), 0), inner(static_cast<size_t>(Count()), 0);
    for (int64_t i = 0; i < points_; ++i) {
      double* row = costs.data() + i * Count();
      for (int64_t q = 0; q < points_; ++q) row[of[static_cast<size_t>(q)]] += Product(i, q);
      const auto own = static_cast<size_t>(of[static_cast<size_t>(i)]);
      inner[own] += row[own];
    }
    for (int64_t i = 0; i < points_; ++i) {
      double* row = costs.data() + i * Count();
      for (size_t j = 0; j < sizes_.size(); ++j) {
        const auto size = static_cast<double>(sizes_[j]);
        row[j] = size == 0 ? 0 : Product(i, i) - 2 * row[j] / size + inner[j] / (size * size);
      }
    }
    return costs;
  }

  std::span<const float> products_;
  std::span<const int64_t> sizes_;
  int64_t points_;
};

}  // namespace

std::vector<int64_t> BalancedAssignment(std::span<const double> costs, std::span<const int64_t> sizes) {
  OUTRIDER_CHECK(!sizes.empty() && std::ranges::all_of(sizes, [](int64_t s) { return s >= 0; }), "sizes");
  const int64_t points = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  OUTRIDER_CHECK(costs.size() == static_cast<size_t>(points) * sizes.size(), costs.size(), " costs of ", points,
                 " points");
  return Assignment(costs, sizes).Run();
}

Clusters BalancedClusters(std::span<const float> products, std::span<const int64_t> sizes, int64_t rounds_max) {
  return Lloyd(products, sizes).Run(rounds_max);
}

}  // namespace outrider::moe
