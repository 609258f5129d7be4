#pragma once
// Logits in falling order, sorted only where somebody looks.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sampling/shortlist.h"
#include "sampling/weights.h"

namespace outrider::sampling {

class Ranking {
 public:
  // Finite logits, among them the weigher's largest. The weigher has to outlive the ranking.
  Ranking(std::span<const Rank> ranks, const Weigher& weigher);

  double total() const { return total_; }

  // Drawn among the first whose weights reach `reach` together: at least one and at most all.
  int32_t Draw(double reach, double uniform);

 private:
  struct Place {
    size_t rank = 0;
    double reached = 0;  // weights up to and with this rank
  };
  // The first rank below `end` whose `reached` is enough, else the last one that weighs anything.
  template <class Enough>
  Place Find(size_t end, Enough enough);
  void Sort(size_t bucket);

  const Weigher& weigher_;
  std::vector<Rank> ranks_;     // bucket by bucket
  std::vector<float> weights_;  // of ranks_
  std::vector<size_t> begins_;  // of buckets in ranks_, and the end
  std::vector<double> sums_;    // of buckets
  double total_ = 0;
};

}  // namespace outrider::sampling
