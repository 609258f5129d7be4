#include "plan/early_cuts.h"

namespace outrider::plan {

std::vector<char> FindEarlyCuts(std::span<const int> end_ops, EarlyCutSizes sizes) {
  std::vector<char> cuts(end_ops.size(), 0);
  int cut_at = 0, gap = sizes.ops_min, parts = 0;
  for (size_t i = 0; i < end_ops.size(); ++i) {
    if (end_ops[i] - cut_at < gap) continue;
    cuts[i] = 1;
    cut_at = end_ops[i];
    if (++parts % sizes.parts_of_a_size == 0) gap *= 2;
  }
  return cuts;
}

}  // namespace outrider::plan
