#pragma once
// The order of signature blocks in a layer: neighbours differ in one expert, and no expert is cut into many runs.

#include <cstdint>
#include <vector>

#include "moe/masks.h"

namespace outrider::moe {

constexpr int64_t kOrderedExpertsMax = 8;

// All 2^N signatures, each once, starting at 0; neighbours differ in one bit, and every bit is set in at most about
// 2^N / 2N runs (10 for N = 7). Leaving signatures out adds no run. Deterministic. 1 <= experts <= 8.
std::vector<Signature> BalancedOrder(int64_t experts);

// Number of maximal runs of set bits of one expert along an order.
int64_t RunsOf(const std::vector<Signature>& order, int64_t expert);

}  // namespace outrider::moe
