#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "base/philox.h"

namespace outrider::sampling {
namespace {

// In [0, 1), from 53 bits.
double Uniform(uint64_t seed, uint64_t step) {
  const base::PhiloxBlock out = base::Philox(seed, {static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)});
  return static_cast<double>(((uint64_t{out[1]} << 32) | out[0]) >> 11) * 0x1p-53;
}

// Ids with the most likely in front, sorted as far as somebody asked.
class Ranking {
 public:
  explicit Ranking(std::span<const float> logits) : logits_(logits), ids_(logits.size()) {
    std::iota(ids_.begin(), ids_.end(), 0);
  }

  int64_t operator[](size_t rank) {
    while (rank >= sorted_) SortMore();
    return ids_[rank];
  }

 private:
  void SortMore() {
    const size_t end = std::min(ids_.size(), std::max<size_t>(64, sorted_ * 8));
    const auto more_likely = [&](int32_t a, int32_t b) {
      return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
    };
    const auto from = ids_.begin() + static_cast<std::ptrdiff_t>(sorted_);
    const auto to = ids_.begin() + static_cast<std::ptrdiff_t>(end);
    if (end < ids_.size()) std::nth_element(from, to, ids_.end(), more_likely);
    std::sort(from, to, more_likely);
    sorted_ = end;
  }

  std::span<const float> logits_;
  std::vector<int32_t> ids_;
  size_t sorted_ = 0;
};

struct Weigher {
  std::span<const float> logits;
  double largest, temperature;
  double operator()(int64_t id) const { return std::exp((static_cast<double>(logits[id]) - largest) / temperature); }
};

// Among all ids, in their order: nothing has to be sorted.
int64_t DrawFromAll(const Weigher& weigh, double uniform) {
  std::vector<double> reached(weigh.logits.size());
  double total = 0;
  for (size_t id = 0; id < reached.size(); ++id) reached[id] = total += weigh(static_cast<int64_t>(id));
  const auto place = std::upper_bound(reached.begin(), reached.end() - 1, uniform * total);
  return place - reached.begin();
}

int64_t DrawFromLikely(const Weigher& weigh, const Sampling& sampling, double uniform) {
  Ranking ranking(weigh.logits);
  const size_t all = weigh.logits.size();
  const size_t kept = sampling.top_k > 0 ? std::min(all, static_cast<size_t>(sampling.top_k)) : all;
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += weigh(kept < all ? ranking[i] : static_cast<int64_t>(i));
  std::vector<double> reached;
  while (reached.size() < kept && (reached.empty() || reached.back() < sampling.top_p * total)) {
    const double before = reached.empty() ? 0 : reached.back();
    reached.push_back(before + weigh(ranking[reached.size()]));
  }
  const auto place = std::upper_bound(reached.begin(), reached.end() - 1, uniform * reached.back());
  return ranking[static_cast<size_t>(place - reached.begin())];
}

}  // namespace

int64_t PickToken(std::span<const float> logits, const Sampling& sampling, uint64_t step) {
  OUTRIDER_CHECK(!logits.empty());
  const auto largest = std::max_element(logits.begin(), logits.end());
  if (sampling.temperature <= 0) return largest - logits.begin();
  const Weigher weigh{logits, *largest, sampling.temperature};
  const double uniform = Uniform(sampling.seed, step);
  const bool all = sampling.top_p >= 1 && (sampling.top_k <= 0 || static_cast<size_t>(sampling.top_k) >= logits.size());
  return all ? DrawFromAll(weigh, uniform) : DrawFromLikely(weigh, sampling, uniform);
}

}  // namespace outrider::sampling
