#pragma once
// The order in which channel records lie on a GPU. A kernel sums over kHands ranges of it apart
// (kernels/cuda/columns.cuh), and takes as long as the longest: so each shall hold as much of every expert.

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/channel_store.h"

namespace outrider::serve_gpu {

constexpr int64_t kHands = 32;
constexpr int64_t kGroup = 16;  // channels that stay together

// signatures: of channels in the order of signatures. -> the places of channels in that order, as they shall lie:
// groups of kGroup neighbours, each dealt to the hand with the least of what the group's experts have. A rest of fewer
// channels comes last.
std::vector<int64_t> DealtOrder(std::span<const kernels::Signature> signatures);

}  // namespace outrider::serve_gpu
