#include "sampling/logprobs.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "base/check.h"
#include "sampling/likeliest.h"
#include "sampling/shortlist.h"
#include "sampling/weights.h"

namespace outrider::sampling {

Logprobs LogprobsOf(std::span<const float> logits, int32_t token, int64_t top) {
  OUTRIDER_CHECK(token >= 0 && static_cast<size_t>(token) < logits.size(), "token ", token, " of ", logits.size());
  const auto logit_of = [&](int64_t id) { return logits[static_cast<size_t>(id)]; };
  const int64_t likeliest = LikeliestId(logits);
  double whole = std::numeric_limits<double>::quiet_NaN();  // if a logit is not finite
  if (likeliest >= 0) whole = logit_of(likeliest) + std::log(Weigher(logit_of(likeliest), 1).Sum(logits));
  Logprobs out;
  out.of_token = static_cast<float>(logit_of(token) - whole);
  if (top <= 0 || likeliest < 0) return out;
  std::vector<Rank> ranks = Shortlist(logits).MostLikely(static_cast<size_t>(top));
  const auto end = ranks.begin() + std::min(std::ssize(ranks), static_cast<std::ptrdiff_t>(top));
  std::partial_sort(ranks.begin(), end, ranks.end());
  for (auto rank = ranks.begin(); rank != end; ++rank)
    out.top.emplace_back(IdOf(*rank), static_cast<float>(LogitOf(*rank) - whole));
  return out;
}

}  // namespace outrider::sampling
