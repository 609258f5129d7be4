#pragma once
// Philox4x32-10 (Salmon et al., SC 2011): random numbers by key and counter, without state.

#include <array>
#include <cstdint>

namespace outrider::base {

using PhiloxBlock = std::array<uint32_t, 4>;

constexpr PhiloxBlock Philox(uint64_t key, PhiloxBlock counter) {
  auto k0 = static_cast<uint32_t>(key);
  auto k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xD2511F53} * counter[0];
    const uint64_t right = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(right >> 32) ^ counter[1] ^ k0, static_cast<uint32_t>(right),
               static_cast<uint32_t>(left >> 32) ^ counter[3] ^ k1, static_cast<uint32_t>(left)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return counter;
}

}  // namespace outrider::base
