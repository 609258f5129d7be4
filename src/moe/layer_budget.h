#pragma once
// How many channels each layer keeps, when layers may differ.

#include <cstdint>
#include <vector>

namespace outrider::moe {

struct LayerBudget {
  int64_t total = 0;  // channels kept in all
  int64_t least = 1;  // per layer
  int64_t step = 1;   // channels are given out in groups of this size, the last group of a layer may be smaller
};

// Channels kept per layer: the most of sum_l weights[l] * f_l(k_l), f_l(k) the share of the layer's scores [D] that its
// k highest hold, with sum_l k_l = budget.total, budget.least <= k_l <= D. The shares are concave, so taking the group
// with the largest gain per channel again and again is best, up to one group of `step`. Scores and weights must be
// finite and not negative; needs layers * least <= total <= layers * D.
std::vector<int64_t> ShareOut(const std::vector<std::vector<double>>& scores, const std::vector<double>& weights,
                              const LayerBudget& budget);

}  // namespace outrider::moe
