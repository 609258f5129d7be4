#pragma once
// FFN bytes of sets of experts that share channels, as the masks of a refactored model do.

#include <cstdint>
#include <random>
#include <vector>

namespace outrider::sched {

// Bytes by set of experts: `channels` channels of `channel_bytes`, each expert keeps each with the chance `keep`.
inline std::vector<int64_t> OverlappingBytes(int64_t experts, double keep, uint64_t seed, int64_t channels = 64,
                                             int64_t channel_bytes = 1000) {
  std::mt19937_64 random(seed);
  std::vector<int64_t> bytes(size_t{1} << experts, 0);
  for (int64_t c = 0; c < channels; ++c) {
    uint64_t owners = 0;
    for (int64_t e = 0; e < experts; ++e) {
      if (static_cast<double>(random() >> 11) * 0x1p-53 < keep) owners |= uint64_t{1} << e;
    }
    for (size_t set = 0; set < bytes.size(); ++set) bytes[set] += (set & owners) != 0 ? channel_bytes : 0;
  }
  return bytes;
}

}  // namespace outrider::sched
