#include "sched/expert_choice.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <tuple>

#include "sched/plan_builder.h"
#include "sched/step_cost.h"

namespace outrider::sched {
namespace {

struct Choice {
  ExpertSet set = 0;
  double rate = -1;  // tokens per second
  int64_t bytes = 0;
};

bool Better(const Choice& a, const Choice& b) {
  return std::tuple(-a.rate, a.bytes, a.set) < std::tuple(-b.rate, b.bytes, b.set);
}

class Chooser {
 public:
  Chooser(const Snapshot& snapshot, std::span<const int64_t> ready)
      : snapshot_(snapshot), ready_(ready), distinct_max_(DistinctMax(snapshot)) {
    for (size_t e = 0; e < ready.size(); ++e) {
      if (ready[e] > 0) useful_ = With(useful_, static_cast<uint8_t>(e));
    }
  }

  ExpertSet Choose(ExpertSet forced) const {
    const Choice best = snapshot_.experts <= kEnumeratedExpertsMax ? Enumerate(forced) : AddGreedily(forced);
    const auto all = static_cast<ExpertSet>(forced | useful_);
    const int64_t items = std::accumulate(ready_.begin(), ready_.end(), int64_t{0});
    const bool all_fit = items <= snapshot_.limits.decode_tokens && std::popcount(all) <= distinct_max_;
    return all_fit && best.rate < snapshot_.limits.hold_gain_min * Rate(all).rate ? all : best.set;
  }

 private:
  Choice Enumerate(ExpertSet forced) const {
    const auto more = static_cast<ExpertSet>(useful_ & ~forced);
    Choice best = Rate(forced);
    // All subsets of `more`: the next lower one in the order of its bits.
    for (ExpertSet added = more; added != 0; added = static_cast<ExpertSet>((added - 1) & more)) {
      const auto set = static_cast<ExpertSet>(forced | added);
      if (std::popcount(set) <= distinct_max_) best = std::min(best, Rate(set), Better);
    }
    return best;
  }

  Choice AddGreedily(ExpertSet forced) const {
    Choice best = Rate(forced);
    while (std::popcount(best.set) < distinct_max_) {
      Choice next = best;
      for (uint8_t e = 0; e < ready_.size(); ++e) {
        if (Has(useful_, e) && !Has(best.set, e)) next = std::min(next, Rate(With(best.set, e)), Better);
      }
      if (next.set == best.set) break;
      best = next;
    }
    return best;
  }

  Choice Rate(ExpertSet set) const {
    int64_t tokens = 0;
    for (size_t e = 0; e < ready_.size(); ++e) {
      if (Has(set, static_cast<uint8_t>(e))) tokens += ready_[e];
    }
    tokens = std::min(tokens, snapshot_.limits.decode_tokens);
    if (tokens == 0) return {set, -1, FfnBytes(snapshot_, set)};
    const double seconds = StepSeconds(snapshot_, set, tokens);
    // A model without weights costs nothing: more tokens are better.
    const double rate = static_cast<double>(tokens) / (seconds > 0 ? seconds : 1);
    return {set, rate, FfnBytes(snapshot_, set)};
  }

  const Snapshot& snapshot_;
  std::span<const int64_t> ready_;
  int64_t distinct_max_;
  ExpertSet useful_ = 0;  // experts with a ready item
};

}  // namespace

int64_t DistinctMax(const Snapshot& snapshot) {
  const int64_t limit = snapshot.limits.distinct_experts;
  return limit <= 0 ? snapshot.experts : std::min(limit, snapshot.experts);
}

ExpertSet ChooseExperts(const Snapshot& snapshot, ExpertSet forced, std::span<const int64_t> ready) {
  return Chooser(snapshot, ready).Choose(forced);
}

}  // namespace outrider::sched
