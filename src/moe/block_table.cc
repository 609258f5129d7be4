#include "moe/block_table.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "base/check.h"
#include "moe/signature_order.h"

namespace outrider::moe {
namespace {

// Rank of every signature in the stored order, [2^N]; 0 comes last.
std::vector<uint32_t> RanksFor(int64_t experts) {
  std::vector<uint32_t> ranks(size_t{1} << experts);
  if (experts <= kOrderedExpertsMax) {
    const std::vector<Signature> order = BalancedOrder(experts);
    for (uint32_t i = 0; i < order.size(); ++i) ranks[order[i]] = i;
  } else {
    for (uint32_t i = 0; i < ranks.size(); ++i) ranks[i ^ (i >> 1)] = i;
  }
  ranks[0] = static_cast<uint32_t>(ranks.size());
  return ranks;
}

const std::vector<uint32_t>& Ranks(int64_t experts) {
  static const std::vector<std::vector<uint32_t>> all = [] {
    std::vector<std::vector<uint32_t>> built;
    for (int64_t n = 0; n <= kExpertsMax; ++n) built.push_back(n == 0 ? std::vector<uint32_t>{} : RanksFor(n));
    return built;
  }();
  return all[static_cast<size_t>(experts)];
}

}  // namespace

LayerLayout LayOut(const Masks& masks, int64_t layer, int64_t page_channels) {
  OUTRIDER_CHECK(page_channels >= 1, page_channels, " channels per page");
  const std::vector<uint32_t>& ranks = Ranks(masks.experts());
  const std::span<const Signature> signatures = masks.Layer(layer);
  const auto rank_of = [&](int32_t c) { return ranks[signatures[static_cast<size_t>(c)]]; };

  LayerLayout layout;
  layout.permutation.resize(signatures.size());
  std::iota(layout.permutation.begin(), layout.permutation.end(), 0);
  std::ranges::stable_sort(layout.permutation, {}, rank_of);
  for (size_t p = 0; p < layout.permutation.size(); ++p) {
    const Signature s = signatures[static_cast<size_t>(layout.permutation[p])];
    if (layout.blocks.empty() || layout.blocks.back().signature != s) {
      layout.blocks.push_back({s, static_cast<int64_t>(p), 0, 0});
    }
    ++layout.blocks.back().channels;
  }
  for (Block& block : layout.blocks) block.pages = (block.channels + page_channels - 1) / page_channels;
  return layout;
}

Masks Permuted(const Masks& masks, std::span<const LayerLayout> layouts) {
  OUTRIDER_CHECK(static_cast<int64_t>(layouts.size()) == masks.layers(), layouts.size(), " layouts");
  Masks out(masks.experts(), masks.layers(), masks.channels());
  for (int64_t l = 0; l < masks.layers(); ++l) {
    const std::span<const Signature> from = masks.Layer(l);
    std::vector<Signature> to;
    for (const int32_t c : layouts[static_cast<size_t>(l)].permutation) to.push_back(from[static_cast<size_t>(c)]);
    out.SetLayer(l, to);
  }
  return out;
}

}  // namespace outrider::moe
