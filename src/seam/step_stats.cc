#include "seam/step_stats.h"

#include <utility>

namespace outrider::seam {

const char* CodeOf(FlushReason reason) {
  static constexpr const char* kCodes[] = {"FLUSH_FETCH",   "FLUSH_RAW_ACCESS", "FLUSH_FOREIGN_OP", "FLUSH_DATA_DEPENDENT", "FLUSH_FLAG",
                                           "FLUSH_ESCAPED", "FLUSH_RECORD",     "FLUSH_FORK",       "FLUSH_CALLED",
                                           "FLUSH_STEP_OUTSIDE", "FLUSH_DEBUG"};
  static_assert(std::size(kCodes) == static_cast<size_t>(FlushReason::kCount));
  return kCodes[static_cast<size_t>(reason)];
}

const char* CodeOf(DivergenceReason reason) {
  static constexpr const char* kCodes[] = {"DIV_NEW_PATH",   "DIV_META",      "DIV_ENV",    "DIV_ARGUMENT",  "DIV_WIRING", "DIV_BACKWARD",
                                           "DIV_RAW_ACCESS", "DIV_EXCEPTION", "DIV_FORCED", "DIV_STEP_ENDED"};
  static_assert(std::size(kCodes) == static_cast<size_t>(DivergenceReason::kCount));
  return kCodes[static_cast<size_t>(reason)];
}

void StepStats::Diverge(Divergence divergence) {
  ++divergence_count;
  if (divergences.size() < kDivergencesMax) divergences.push_back(std::move(divergence));
}

int64_t StepStats::InlineOps() const {
  int64_t total = 0;
  for (const auto& [name, count] : inline_ops) total += count;
  return total;
}

}  // namespace outrider::seam
