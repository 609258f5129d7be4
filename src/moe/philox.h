#pragma once
// Everything random in the refactoring is a function of (seed, stage, step, sample), so a resumed run draws what an
// uninterrupted one draws.

#include <cstdint>

#include "base/philox.h"

namespace outrider::moe {

using base::Philox;
using base::PhiloxBlock;

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
  kAdapterInit,
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
