#include "sampling/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "base/philox.h"
#include "sampling/likeliest.h"
#include "sampling/ranking.h"
#include "sampling/shortlist.h"
#include "sampling/weights.h"

namespace outrider::sampling {
namespace {

// In [0, 1), from 53 bits.
double Uniform(uint64_t seed, uint64_t step) {
  const base::PhiloxBlock out = base::Philox(seed, {static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)});
  return static_cast<double>(((uint64_t{out[1]} << 32) | out[0]) >> 11) * 0x1p-53;
}

constexpr size_t kBlock = 512;  // of ids that are summed at once

// Among all ids, in their order.
int64_t DrawFromAll(std::span<const float> logits, const Weigher& weigher, double uniform) {
  const auto block_at = [&](size_t at) { return logits.subspan(at, std::min(kBlock, logits.size() - at)); };
  std::vector<double> reached;
  double total = 0;
  for (size_t at = 0; at < logits.size(); at += kBlock) reached.push_back(total += weigher.Sum(block_at(at)));
  // The last block is the last that weighs anything.
  const auto last = std::lower_bound(reached.begin(), reached.end(), total);
  const double target = uniform * total;
  const auto found = std::upper_bound(reached.begin(), last, target);
  const size_t from = static_cast<size_t>(found - reached.begin()) * kBlock;
  const std::span<const float> block = block_at(from);
  std::array<float, kBlock> weights;
  weigher.Weigh(block, weights.data());
  double sum = found == reached.begin() ? 0 : *(found - 1);
  size_t drawn = 0;
  for (size_t i = 0; i < block.size(); ++i) {
    if (weights[i] == 0) continue;
    drawn = i;
    if ((sum += static_cast<double>(weights[i])) > target) break;
  }
  return static_cast<int64_t>(from + drawn);
}

// Less likely ids weigh less than what top_p leaves out, all of them together: half of it, because sums are rounded.
float FloorOfTopP(size_t ids, const Weigher& weigher, double top_p, double total) {
  const double weight = (1 - top_p) / 2 * total / static_cast<double>(ids);
  const double floor = static_cast<double>(weigher.largest()) + weigher.temperature() * std::log(weight);
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  if (!(floor > static_cast<double>(kLowest))) return kLowest;
  return std::nextafter(static_cast<float>(floor), kLowest);
}

int64_t DrawFromLikely(std::span<const float> logits, const Weigher& weigher, const Sampling& sampling,
                       double uniform) {
  const Shortlist shortlist(logits);
  if (sampling.top_k <= 0 || static_cast<size_t>(sampling.top_k) >= logits.size()) {
    const double total = weigher.Sum(logits);
    const float floor = FloorOfTopP(logits.size(), weigher, sampling.top_p, total);
    return Ranking(shortlist.From(floor), weigher).Draw(sampling.top_p * total, uniform);
  }
  const auto kept = static_cast<size_t>(sampling.top_k);
  std::vector<Rank> ranks = shortlist.MostLikely(kept);
  if (ranks.size() > kept) {
    std::nth_element(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(kept), ranks.end());
    ranks.resize(kept);
  }
  Ranking ranking(ranks, weigher);
  return ranking.Draw(sampling.top_p * ranking.total(), uniform);
}

}  // namespace

int64_t PickToken(std::span<const float> logits, const Sampling& sampling, uint64_t step) {
  const int64_t likeliest = LikeliestId(logits);
  if (likeliest < 0 || sampling.temperature <= 0 || sampling.top_p <= 0) return likeliest;
  const Weigher weigher(logits[static_cast<size_t>(likeliest)], sampling.temperature);
  const double uniform = Uniform(sampling.seed, step);
  const bool all = sampling.top_p >= 1 && (sampling.top_k <= 0 || static_cast<size_t>(sampling.top_k) >= logits.size());
  return all ? DrawFromAll(logits, weigher, uniform) : DrawFromLikely(logits, weigher, sampling, uniform);
}

}  // namespace outrider::sampling
