#pragma once
// Learning rates of the alternating rounds (Read-ME, arXiv 2410.19123, section 3.5 of the method): cosine inside a
// round, without warm-up, and x0.8 from one round to the next. Closed form: no state to save, and one place to step.

#include <cstdint>

namespace outrider::moe {

struct Cosine {
  double peak = 5e-5;        // at step 0 of round 0
  double round_decay = 0.8;  // factor per round
  int64_t steps = 1;         // of one round
  int64_t warmup = 0;        // linear from peak / warmup; published: 0
  double floor = 0;          // share of the round's peak that the cosine ends at
};

// Rate of optimizer step `step` (0 <= step < steps) of round `round`.
double LearningRate(const Cosine& cosine, int64_t round, int64_t step);

}  // namespace outrider::moe
