#pragma once
// Philox4x32-10 (Salmon et al., SC 2011): random numbers by key and counter, without state. Everything random in the
// refactoring is a function of (seed, stage, step, sample), so a resumed run draws what an uninterrupted one draws.

#include <array>
#include <cstdint>

namespace outrider::moe {

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

// What a draw is for; one number per use, so that uses never share numbers.
enum class Use : uint32_t {
  kProfile,
  kCoverageStart,
  kRouter,
  kExpert,
  kRouterInit,
  kRandomIds,
  kOrder,
  kTest,
  kRandomMasks,
  kPass,
};

// 64 random bits for one sample of one step.
constexpr uint64_t Random64(uint64_t seed, Use use, uint32_t stage, uint32_t step, uint32_t sample) {
  const PhiloxBlock out = Philox(seed, {static_cast<uint32_t>(use), stage, step, sample});
  return (uint64_t{out[1]} << 32) | out[0];
}

// Uniform in [0, bound); bound > 0. The bias is below bound / 2^64.
constexpr uint64_t Below(uint64_t bits, uint64_t bound) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(bits) * bound) >> 64);
}

}  // namespace outrider::moe
