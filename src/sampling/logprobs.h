#pragma once
// Natural logarithms of the probabilities that a row of logits gives to tokens.

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace outrider::sampling {

struct Logprobs {
  float of_token = 0;
  std::vector<std::pair<int32_t, float>> top;  // the most likely first, the lowest id among equals
};

// For `token`, and for the `top` most likely ones. Logits are finite.
Logprobs LogprobsOf(std::span<const float> logits, int32_t token, int64_t top);

}  // namespace outrider::sampling
