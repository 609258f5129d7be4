#pragma once
// Which of a row of logits is the largest.

#include <cstdint>
#include <span>

namespace outrider::sampling {

// The lowest id among equals (-0 equals +0); -1 if any logit is not finite. At least one logit.
int64_t LikeliestId(std::span<const float> logits);

}  // namespace outrider::sampling
