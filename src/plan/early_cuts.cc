#include "plan/early_cuts.h"

#include <algorithm>
#include <numeric>

namespace outrider::plan {

std::vector<char> FindEarlyCuts(std::span<const int> end_ops, int first_op, EarlyCutSizes sizes) {
  std::vector<char> cuts(end_ops.size(), 0);
  int cut_at = first_op, gap = sizes.ops_min, parts = 0;
  for (size_t i = 0; i < end_ops.size(); ++i) {
    if (end_ops[i] - cut_at < gap) continue;
    cuts[i] = 1;
    cut_at = end_ops[i];
    if (++parts % sizes.parts_of_a_size == 0) gap *= 2;
  }
  return cuts;
}

std::vector<char> FindEqualCuts(std::span<const int> end_ops, int first_op, int parts) {
  std::vector<char> cuts(end_ops.size(), 0);
  if (end_ops.empty()) return cuts;
  const int64_t count = end_ops.back() - first_op;
  int64_t done = 0;
  for (size_t i = 0; i < end_ops.size(); ++i) {
    const int64_t now = (end_ops[i] - first_op) * int64_t{parts} / std::max<int64_t>(count, 1);
    if (now <= done || end_ops[i] == end_ops.back()) continue;
    cuts[i] = 1;
    done = now;
  }
  return cuts;
}

int FindHeadCut(std::span<const int> end_ops, std::span<const size_t> bytes, double share) {
  constexpr int kOpsMin = 8;  // fewer are not worth a graph
  if (end_ops.empty()) return -1;
  const auto until = [&](int end) { return std::accumulate(bytes.begin(), bytes.begin() + end, 0.0); };
  const double wanted = share * until(end_ops.back());
  double made = 0;
  int done = 0;
  for (size_t i = 0; i < end_ops.size() && end_ops[i] < end_ops.back(); ++i) {
    for (; done < end_ops[i]; ++done) made += static_cast<double>(bytes[static_cast<size_t>(done)]);
    if (done >= kOpsMin && made >= wanted) return static_cast<int>(i);
  }
  return -1;
}

StepCuts FindStepCuts(std::span<const int> end_ops, int last_backward) {
  constexpr int kGraphParts = 4;
  const auto forward = end_ops.first(static_cast<size_t>(std::max(last_backward, 0)));
  const auto tail = end_ops.subspan(static_cast<size_t>(last_backward + 1));
  const int before_tail = last_backward < 0 ? 0 : end_ops[static_cast<size_t>(last_backward)];
  const auto join = [&](std::vector<char> cuts, const std::vector<char>& behind) {
    if (last_backward >= 0) cuts.push_back(0);
    cuts.insert(cuts.end(), behind.begin(), behind.end());
    return cuts;
  };
  return {join(FindEarlyCuts(forward), FindEarlyCuts(tail, before_tail)),
          join(FindEqualCuts(forward, 0, kGraphParts), FindEqualCuts(tail, before_tail, kGraphParts))};
}

}  // namespace outrider::plan
