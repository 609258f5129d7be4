#include "moe/routes.h"

#include <bit>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace outrider::moe {

std::vector<int64_t> Route(std::span<const float> logits, int64_t experts, double tau, int64_t previous) {
  OUTRIDER_CHECK(experts >= 1 && logits.size() % static_cast<size_t>(experts) == 0, logits.size(), " logits");
  OUTRIDER_CHECK(previous < experts, "previous id ", previous, " of ", experts);
  std::vector<int64_t> ids;
  for (size_t at = 0; at < logits.size(); at += static_cast<size_t>(experts)) {
    const std::span<const float> row = logits.subspan(at, static_cast<size_t>(experts));
    size_t best = 0;
    for (size_t i = 1; i < row.size(); ++i) best = row[i] > row[best] ? i : best;
    const bool stay =
        previous >= 0 && tau > 0 && static_cast<double>(row[best]) - row[static_cast<size_t>(previous)] < tau;
    previous = stay ? previous : static_cast<int64_t>(best);
    ids.push_back(previous);
  }
  return ids;
}

void RouteStats::Add(std::span<const int64_t> ids) {
  size_t run = 0;
  for (size_t t = 0; t < ids.size(); ++t) {
    ++load.at(static_cast<size_t>(ids[t]));
    ++run;
    const bool ends = t + 1 == ids.size() || ids[t + 1] != ids[t];
    if (t + 1 < ids.size()) {
      ++pairs;
      stays += ends ? 0 : 1;
    }
    if (!ends) continue;
    const auto bin = static_cast<size_t>(std::bit_width(run)) - 1;
    if (run_lengths.size() <= bin) run_lengths.resize(bin + 1, 0);
    ++run_lengths[bin];
    run = 0;
  }
}

double RouteStats::Entropy() const {
  if (load.size() < 2) return 1;
  const auto total = static_cast<double>(std::accumulate(load.begin(), load.end(), int64_t{0}));
  double nats = 0;
  for (const int64_t n : load) {
    const double share = static_cast<double>(n) / total;
    if (n > 0) nats -= share * std::log(share);
  }
  return nats / std::log(static_cast<double>(load.size()));
}

}  // namespace outrider::moe
