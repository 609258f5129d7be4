#include "serve_gpu/deal.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace outrider::serve_gpu {
namespace {

using Counts = std::array<int64_t, 16>;  // channels of each expert

Counts CountsOf(std::span<const kernels::Signature> signatures) {
  Counts counts{};
  for (const kernels::Signature s : signatures)
    for (size_t e = 0; e < counts.size(); ++e) counts[e] += s >> e & 1;
  return counts;
}

}  // namespace

std::vector<int64_t> DealtOrder(std::span<const kernels::Signature> signatures) {
  const auto groups = static_cast<int64_t>(signatures.size()) / kGroup;
  std::vector<Counts> counts;
  for (int64_t g = 0; g < groups; ++g)
    counts.push_back(CountsOf(signatures.subspan(static_cast<size_t>(g * kGroup), kGroup)));
  // Those that most experts have go first, while all hands are open.
  std::vector<int64_t> turns(static_cast<size_t>(groups));
  std::iota(turns.begin(), turns.end(), 0);
  std::ranges::stable_sort(turns, std::greater(), [&](int64_t g) {
    const Counts& own = counts[static_cast<size_t>(g)];
    return std::accumulate(own.begin(), own.end(), int64_t{0});
  });
  std::array<std::vector<int64_t>, kHands> hands;
  std::array<Counts, kHands> held{};
  for (const int64_t g : turns) {
    const Counts& own = counts[static_cast<size_t>(g)];
    size_t best = hands.size();
    int64_t least = 0;
    for (size_t h = 0; h < hands.size(); ++h) {
      const auto hand = static_cast<int64_t>(h);
      const int64_t room = groups * (hand + 1) / kHands - groups * hand / kHands;
      if (static_cast<int64_t>(hands[h].size()) == room) continue;
      const int64_t cost = std::inner_product(own.begin(), own.end(), held[h].begin(), int64_t{0});
      if (best == hands.size() || cost < least || (cost == least && hands[h].size() < hands[best].size())) {
        best = h;
        least = cost;
      }
    }
    hands[best].push_back(g);
    for (size_t e = 0; e < own.size(); ++e) held[best][e] += own[e];
  }
  std::vector<int64_t> order;
  for (std::vector<int64_t>& hand : hands) {
    std::ranges::sort(hand);
    for (const int64_t g : hand)
      for (int64_t c = g * kGroup; c < (g + 1) * kGroup; ++c) order.push_back(c);
  }
  for (auto c = groups * kGroup; c < static_cast<int64_t>(signatures.size()); ++c) order.push_back(c);
  return order;
}

}  // namespace outrider::serve_gpu
