#include "serve/expert_map.h"

#include <algorithm>
#include <numeric>
#include <string>

namespace outrider::serve {

base::Result<void> CheckExperts(const spec::Config& config, const ExpertMap& map) {
  if (map.experts == 0) return {};
  const auto fits = [&](const auto& lists) {
    return static_cast<int64_t>(lists.size()) == config.layers && std::ranges::all_of(lists, [&](const auto& list) {
             return static_cast<int64_t>(list.size()) == config.ffn;
           });
  };
  if (map.experts < 0 || map.experts > kernels::kExpertsMax)
    return base::Fail("E_EXPERTS", "found " + std::to_string(map.experts) + " experts, expected up to " +
                                       std::to_string(kernels::kExpertsMax));
  if (!fits(map.signatures) || (!map.order.empty() && !fits(map.order)))
    return base::Fail("E_EXPERTS", "signatures or order: found other sizes, expected " + std::to_string(config.layers) +
                                       " layers of " + std::to_string(config.ffn) + " channels");
  for (const auto& layer : map.order) {
    std::vector<bool> seen(layer.size(), false);
    for (const int32_t c : layer) {
      if (c < 0 || c >= config.ffn || seen[static_cast<size_t>(c)])
        return base::Fail("E_EXPERTS", "order: found channel " + std::to_string(c) + " twice or out of range");
      seen[static_cast<size_t>(c)] = true;
    }
  }
  return {};
}

base::Result<LiveChannels> LiveChannelsOf(const spec::Config& config, const ExpertMap& map, int64_t layer) {
  const auto l = static_cast<size_t>(layer);
  std::vector<int32_t> order(static_cast<size_t>(config.ffn));
  std::iota(order.begin(), order.end(), 0);
  if (!map.order.empty()) order = map.order[l];
  LiveChannels live;
  for (const int32_t c : order) {
    const kernels::Signature signature = map.experts == 0 ? 1 : map.signatures[l][static_cast<size_t>(c)];
    if (signature == 0) continue;
    live.channels.push_back(c);
    live.signatures.push_back(signature);
  }
  if (live.channels.empty())
    return base::Fail("E_EXPERTS", "layer " + std::to_string(layer) + ": found no channel in any expert");
  return live;
}

std::vector<int64_t> BytesOfSets(std::vector<int64_t> by_signature) {
  std::vector<int64_t>& inside = by_signature;  // becomes: of signatures that are subsets of the index
  const size_t sets = inside.size();
  for (size_t bit = 1; bit < sets; bit <<= 1)
    for (size_t set = 0; set < sets; ++set)
      if ((set & bit) != 0) inside[set] += inside[set ^ bit];
  std::vector<int64_t> of(sets);
  for (size_t set = 0; set < sets; ++set) of[set] = inside[sets - 1] - inside[sets - 1 - set];
  return of;
}

}  // namespace outrider::serve
