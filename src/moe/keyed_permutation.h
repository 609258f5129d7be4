#pragma once
// A pseudo-random permutation of 0 to size - 1 as a function of key and index: the i-th place of a shuffled pass
// without the shuffled list.

#include <bit>
#include <cstdint>

#include "moe/philox.h"

namespace outrider::moe {

// A balanced Feistel network over the smallest even number of bits that holds `size`, applied until the value is in
// range (cycle walking): a bijection for every key. 0 <= index < size.
constexpr uint64_t KeyedPermutation(uint64_t key, uint64_t size, uint64_t index) {
  const int half = (std::bit_width(size - 1) + 1) / 2;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  uint64_t value = index;
  do {
    uint64_t left = value >> half, right = value & mask;
    for (uint32_t round = 0; round < 6; ++round) {
      const PhiloxBlock bits =
          Philox(key, {round, static_cast<uint32_t>(right), static_cast<uint32_t>(right >> 32), 0});
      const uint64_t next = left ^ (bits[0] & mask);
      left = right;
      right = next;
    }
    value = (left << half) | right;
  } while (value >= size);
  return value;
}

}  // namespace outrider::moe
