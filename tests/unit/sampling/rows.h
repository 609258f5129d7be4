#pragma once
// Rows of logits of every kind.

#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

namespace outrider::sampling {

inline constexpr int kRowKinds = 7;

inline std::vector<float> RandomRow(std::mt19937& random, size_t size, int kind) {
  std::normal_distribution<float> normal(0, kind == 4 ? 0.01F : 2.0F);
  const auto any = [&] { return static_cast<size_t>(random() % size); };
  std::vector<float> logits(size);
  for (float& logit : logits) logit = normal(random);
  if (kind == 1)  // many equals, zeros of both signs
    for (float& logit : logits) logit = std::trunc(logit);
  if (kind == 2)  // a few are likely
    for (int i = 0; i < 5; ++i) logits[any()] = 10 + normal(random);
  if (kind == 3)  // all equal
    logits.assign(size, logits[0]);
  if (kind == 5) logits[any()] = 1e30F;
  if (kind == 6)  // few steps, far from zero
    for (float& logit : logits) logit = 100 + std::round(logit * 8) / 8;
  return logits;
}

inline size_t RandomSize(std::mt19937& random) {
  constexpr size_t kSizes[] = {1, 2, 3, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1024, 1040, 4096, 5000};
  return random() % 2 == 0 ? kSizes[random() % std::size(kSizes)] : 1 + random() % 5000;
}

}  // namespace outrider::sampling
