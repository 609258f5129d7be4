#pragma once
// Which channel belongs to which expert, and what sets of experts have together.

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "kernels/channel_store.h"
#include "spec/config.h"

namespace outrider::serve {

// Empty for a dense model; with one expert the model is a dense one of fewer channels.
struct ExpertMap {
  int64_t experts = 0;
  std::vector<std::vector<kernels::Signature>> signatures;  // per layer, of the source's channels
  // Per layer: the channels of the source in the order of storing, best by signature. Empty: as they come. Channels of
  // no expert are left out.
  std::vector<std::vector<int32_t>> order;
};

// E_EXPERTS: another number of layers or channels, a channel twice in an order.
base::Result<void> CheckExperts(const spec::Config& config, const ExpertMap& map);

// Channels of at least one expert, in the order of storing.
struct LiveChannels {
  std::vector<int32_t> channels;
  std::vector<kernels::Signature> signatures;
};

// Of a map that was checked; a dense model has all of them, of expert 0. E_EXPERTS: there is none.
base::Result<LiveChannels> LiveChannelsOf(const spec::Config& config, const ExpertMap& map, int64_t layer);

// by_signature [2^N]: bytes of the channels with each signature -> [2^N]: of those that any expert of a set has.
std::vector<int64_t> BytesOfSets(std::vector<int64_t> by_signature);

}  // namespace outrider::serve
