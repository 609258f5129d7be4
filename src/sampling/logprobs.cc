#include "sampling/logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace outrider::sampling {

Logprobs LogprobsOf(std::span<const float> logits, int32_t token, int64_t top) {
  OUTRIDER_CHECK(token >= 0 && static_cast<size_t>(token) < logits.size(), "token ", token, " of ", logits.size());
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  const double whole = largest + std::log(sum);
  Logprobs out;
  out.of_token = static_cast<float>(logits[static_cast<size_t>(token)] - whole);
  if (top <= 0) return out;
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto end = ids.begin() + std::min(static_cast<std::ptrdiff_t>(ids.size()), static_cast<std::ptrdiff_t>(top));
  std::partial_sort(ids.begin(), end, ids.end(),
                    [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  for (auto id = ids.begin(); id != end; ++id)
    out.top.emplace_back(*id, static_cast<float>(logits[static_cast<size_t>(*id)] - whole));
  return out;
}

}  // namespace outrider::sampling
