#include "sampling/ranking.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace outrider::sampling {
namespace {

constexpr size_t kPerBucket = 32;

void CopyLogits(std::span<const Rank> ranks, float* to) { std::transform(ranks.begin(), ranks.end(), to, LogitOf); }

// Buckets of equally wide ranges of logits, the largest in front.
class Buckets {
 public:
  Buckets(std::span<const float> logits, float largest)
      : largest_(largest), count_((logits.size() + kPerBucket - 1) / kPerBucket) {
    const double range = largest_ - *std::min_element(logits.begin(), logits.end());
    if (range > 0) per_logit_ = static_cast<double>(count_) / range;
  }
  size_t count() const { return count_; }
  size_t operator()(float logit) const {
    return std::min(count_ - 1, static_cast<size_t>((largest_ - static_cast<double>(logit)) * per_logit_));
  }

 private:
  double largest_, per_logit_ = 0;
  size_t count_;
};

}  // namespace

Ranking::Ranking(std::span<const Rank> ranks, const Weigher& weigher)
    : weigher_(weigher), ranks_(ranks.size()), weights_(ranks.size()) {
  OUTRIDER_CHECK(!ranks.empty());
  CopyLogits(ranks, weights_.data());
  const Buckets bucket_of(weights_, weigher.largest());
  begins_.resize(bucket_of.count() + 1);
  for (const float logit : weights_) ++begins_[bucket_of(logit) + 1];
  std::partial_sum(begins_.begin(), begins_.end(), begins_.begin());
  std::vector<size_t> next = begins_;
  for (size_t i = 0; i < ranks.size(); ++i) ranks_[next[bucket_of(weights_[i])]++] = ranks[i];
  CopyLogits(ranks_, weights_.data());
  weigher.Weigh(weights_, weights_.data());
  sums_.resize(bucket_of.count());
  for (size_t bucket = 0; bucket < sums_.size(); ++bucket) {
    for (size_t i = begins_[bucket]; i < begins_[bucket + 1]; ++i) sums_[bucket] += static_cast<double>(weights_[i]);
    total_ += sums_[bucket];
  }
  while (sums_.back() == 0) sums_.pop_back();  // never drawn
  begins_.resize(sums_.size() + 1);
}

void Ranking::Sort(size_t bucket) {
  const std::span<Rank> ranks(ranks_.data() + begins_[bucket], begins_[bucket + 1] - begins_[bucket]);
  if (std::is_sorted(ranks.begin(), ranks.end())) return;
  std::sort(ranks.begin(), ranks.end());
  float* weights = weights_.data() + begins_[bucket];
  CopyLogits(ranks, weights);
  weigher_.Weigh({weights, ranks.size()}, weights);
}

template <class Enough>
Ranking::Place Ranking::Find(size_t end, Enough enough) {
  Place found;
  double reached = 0;
  for (size_t bucket = 0; bucket < sums_.size() && begins_[bucket] < end; ++bucket) {
    if (begins_[bucket + 1] < end && !enough(reached + sums_[bucket])) {
      reached += sums_[bucket];
      continue;
    }
    Sort(bucket);
    for (size_t rank = begins_[bucket]; rank < std::min(begins_[bucket + 1], end); ++rank) {
      if (weights_[rank] == 0) break;
      reached += static_cast<double>(weights_[rank]);
      found = {rank, reached};
      if (enough(reached)) return found;
    }
  }
  return found;
}

int32_t Ranking::Draw(double reach, double uniform) {
  const size_t all = begins_.back();
  const Place last =
      reach < total_ ? Find(all, [&](double reached) { return reached >= reach; }) : Place{all - 1, total_};
  const double target = uniform * last.reached;
  return IdOf(ranks_[Find(last.rank + 1, [&](double reached) { return reached > target; }).rank]);
}

}  // namespace outrider::sampling
