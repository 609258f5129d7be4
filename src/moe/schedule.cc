#include "moe/schedule.h"

#include <cmath>
#include <numbers>

#include "base/check.h"

namespace outrider::moe {

double LearningRate(const Cosine& cosine, int64_t round, int64_t step) {
  OUTRIDER_CHECK(step >= 0 && step < cosine.steps && round >= 0, "step ", step, " of ", cosine.steps);
  OUTRIDER_CHECK(cosine.warmup >= 0 && cosine.warmup < cosine.steps, "warm-up of ", cosine.warmup);
  const double peak = cosine.peak * std::pow(cosine.round_decay, static_cast<double>(round));
  if (step < cosine.warmup) return peak * static_cast<double>(step + 1) / static_cast<double>(cosine.warmup);
  const double done = static_cast<double>(step - cosine.warmup) / static_cast<double>(cosine.steps - cosine.warmup);
  return peak * (cosine.floor + (1 - cosine.floor) * 0.5 * (1 + std::cos(std::numbers::pi * done)));
}

}  // namespace outrider::moe
