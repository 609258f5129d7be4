#include "sampling/likeliest.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "sampling/lanes.h"

namespace outrider::sampling {
namespace {

constexpr size_t kBlock = 512;  // one block is read again to find the id
constexpr size_t kStride = 4 * kLanes;

struct Seen {
  float largest = -std::numeric_limits<float>::infinity();
  bool finite = true;
};

// `count` is a multiple of kStride.
Seen SeenIn(const float* at, size_t count) {
  Floats best[4] = {Load(at), Load(at + kLanes), Load(at + 2 * kLanes), Load(at + 3 * kLanes)};
  Bits bad[4] = {};
  for (size_t i = 0; i < count; i += kStride)
    for (size_t j = 0; j < 4; ++j) {
      const Floats now = Load(at + i + j * kLanes);
      best[j] = Larger(now, best[j]);
      bad[j] |= BitsOf(now - now);  // +0 for finite numbers, else no number
    }
  const Bits any = (bad[0] | bad[1]) | (bad[2] | bad[3]);
  return {LargestOf(Larger(Larger(best[0], best[1]), Larger(best[2], best[3]))),
          (any[0] | any[1] | any[2] | any[3]) == 0};
}

Seen SeenIn(std::span<const float> block) {
  const size_t whole = block.size() / kStride * kStride;
  Seen seen;
  if (whole > 0) seen = SeenIn(block.data(), whole);
  for (const float logit : block.subspan(whole)) {
    seen.largest = std::max(seen.largest, logit);
    seen.finite = seen.finite && logit - logit == 0;
  }
  return seen;
}

}  // namespace

int64_t LikeliestId(std::span<const float> logits) {
  OUTRIDER_CHECK(!logits.empty());
  float largest = -std::numeric_limits<float>::infinity();
  size_t block = 0;
  for (size_t at = 0; at < logits.size(); at += kBlock) {
    const Seen seen = SeenIn(logits.subspan(at, std::min(kBlock, logits.size() - at)));
    if (!seen.finite) return -1;
    if (seen.largest > largest) {
      largest = seen.largest;
      block = at;
    }
  }
  return std::find(logits.begin() + static_cast<std::ptrdiff_t>(block), logits.end(), largest) - logits.begin();
}

}  // namespace outrider::sampling
