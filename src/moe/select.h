#pragma once
// Choosing channels by score. Exact counts; equal scores go to the lower index, so a selection depends on scores alone.

#include <cstdint>
#include <span>
#include <vector>

namespace outrider::moe {

// The k channels with the highest scores, ascending. 0 <= k <= scores.size(); no score may be NaN.
std::vector<int64_t> TopChannels(std::span<const double> scores, int64_t k);

// Channels kept per layer out of layers * channels scores [L, D], the `total` highest in all, but at least one of every
// layer. Needs layers <= total <= layers * channels.
std::vector<std::vector<int64_t>> TopOverall(std::span<const double> scores, int64_t layers, int64_t total);

// Channels kept per layer out of layers * channels scores [L, D], `total` in all. Scores are standardised per layer
// (mean 0, deviation 1) and then compared across layers, so that layers with many outstanding channels keep more
// (the idea of FLAP, AAAI 2024). Otherwise TopOverall.
std::vector<std::vector<int64_t>> TopAcrossLayers(std::span<const double> scores, int64_t layers, int64_t total);

}  // namespace outrider::moe
