#pragma once
// The stored order of one layer's channels: signature blocks one after another, dead channels last.

#include <cstdint>
#include <span>
#include <vector>

#include "moe/masks.h"

namespace outrider::moe {

// All channels of a layer with one signature, contiguous. Offset and size in channels of the stored order.
struct Block {
  Signature signature = 0;
  int64_t offset = 0;
  int64_t channels = 0;
  int64_t pages = 0;  // of `page_channels` channels, the last one perhaps short
  friend bool operator==(const Block&, const Block&) = default;
};

struct LayerLayout {
  std::vector<Block> blocks;         // ascending offset, no gaps; a dead block (signature 0) can only be the last
  std::vector<int32_t> permutation;  // [D]: stored position -> channel of the parent
};

// Layout of `masks` in layer `layer`. Blocks follow BalancedOrder for N <= 8, else the reflected Gray order; inside a
// block channels ascend. page_channels >= 1.
LayerLayout LayOut(const Masks& masks, int64_t layer, int64_t page_channels);

// Masks over the stored order: channel p of the result is channel permutation[p] of `masks`.
Masks Permuted(const Masks& masks, std::span<const LayerLayout> layouts);

}  // namespace outrider::moe
