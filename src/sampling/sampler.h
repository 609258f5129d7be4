#pragma once
// Which token comes next: a pure function of the logits and a seed.

#include <cstdint>
#include <span>

namespace outrider::sampling {

struct Sampling {
  double temperature = 0;  // 0: the largest logit, the lowest id among equals
  int64_t top_k = 0;       // only the k most likely; 0: all
  double top_p = 1;        // only the most likely whose probabilities reach p together
  uint64_t seed = 0;
};

// `step`: how many tokens were drawn before; equal (logits, sampling, step) give equal ids. -1 if a logit is not
// finite.
int64_t PickToken(std::span<const float> logits, const Sampling& sampling, uint64_t step);

}  // namespace outrider::sampling
