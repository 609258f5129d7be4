#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <xxhash.h>

#include "base/check.h"

namespace outrider::model {
namespace {

// In [0, 1), from 53 bits.
double Uniform(uint64_t seed, uint64_t step) {
  return static_cast<double>(XXH3_64bits_withSeed(&step, sizeof(step), seed) >> 11) * 0x1p-53;
}

}  // namespace

int64_t PickToken(std::span<const float> logits, const Sampling& sampling, uint64_t step) {
  OUTRIDER_CHECK(!logits.empty());
  if (sampling.temperature <= 0) return std::max_element(logits.begin(), logits.end()) - logits.begin();
  std::vector<int64_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const size_t kept =
      sampling.top_k > 0 ? std::min<size_t>(ids.size(), static_cast<size_t>(sampling.top_k)) : ids.size();
  const auto more_likely = [&](int64_t a, int64_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(kept), ids.end(), more_likely);
  ids.resize(kept);
  std::vector<double> weights(kept);
  for (size_t i = 0; i < kept; ++i) {
    weights[i] = std::exp((static_cast<double>(logits[ids[i]]) - logits[ids[0]]) / sampling.temperature);
  }
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double reached = 0;
  size_t count = 0;
  while (count < kept && (count == 0 || reached < sampling.top_p * total)) reached += weights[count++];
  double rest = Uniform(sampling.seed, step) * reached;
  for (size_t i = 0; i < count; ++i) {
    rest -= weights[i];
    if (rest < 0) return ids[i];
  }
  return ids[count - 1];
}

}  // namespace outrider::model
