#include "moe/layer_budget.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/check.h"

namespace outrider::moe {
namespace {

// [k]: share of the k highest scores, k = 0 to D.
std::vector<double> HeldShares(std::vector<double> scores) {
  for (const double s : scores) OUTRIDER_CHECK(std::isfinite(s) && s >= 0, "a score of ", s);
  std::ranges::sort(scores, std::greater<>());
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  std::vector<double> held = {0};
  for (const double s : scores) held.push_back(held.back() + (sum > 0 ? s / sum : 0));
  return held;
}

}  // namespace

std::vector<int64_t> ShareOut(const std::vector<std::vector<double>>& scores, const std::vector<double>& weights,
                              const LayerBudget& budget) {
  const auto layers = static_cast<int64_t>(scores.size());
  const auto channels = static_cast<int64_t>(scores.at(0).size());
  OUTRIDER_CHECK(weights.size() == scores.size() && budget.least >= 0 && budget.step >= 1, weights.size(), " weights");
  OUTRIDER_CHECK(layers * budget.least <= budget.total && budget.total <= layers * channels, budget.total, " of ",
                 layers, " layers of ", channels);
  std::vector<std::vector<double>> held;
  for (const std::vector<double>& layer : scores) held.push_back(HeldShares(layer));
  std::vector<int64_t> kept(scores.size(), budget.least);
  for (int64_t rest = budget.total - layers * budget.least; rest > 0;) {
    size_t best = kept.size();
    double most = -1;
    int64_t group = 0;
    for (size_t l = 0; l < kept.size(); ++l) {
      const int64_t size = std::min({budget.step, rest, channels - kept[l]});
      if (size == 0) continue;
      const double gain = weights[l] *
                          (held[l][static_cast<size_t>(kept[l] + size)] - held[l][static_cast<size_t>(kept[l])]) /
                          static_cast<double>(size);
      if (gain <= most) continue;
      best = l;
      most = gain;
      group = size;
    }
    kept[best] += group;
    rest -= group;
  }
  return kept;
}

}  // namespace outrider::moe
