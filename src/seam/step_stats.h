#pragma once
// What one step did, counted where it happens. Plain data of the imperative thread; coexec/report turns it into rows.

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "seam/tier_outcome.h"

namespace outrider::seam {

enum class FlushReason : uint8_t {
  kFetch, kRawAccess, kForeignOp, kDataDependent, kFlag, kEscaped, kRecord, kFork, kCalled, kStepOutside, kDebug, kCount
};
const char* CodeOf(FlushReason reason);

enum class DivergenceReason : uint8_t {
  kNewPath, kMeta, kEnv, kArgument, kWiring, kBackward, kRawAccess, kException, kForced, kStepEnded, kCount
};
const char* CodeOf(DivergenceReason reason);

struct Divergence {
  DivergenceReason reason = DivergenceReason::kNewPath;
  int64_t event = 0;
  std::string expected, got, field, where;
};

struct StepStats {
  int64_t events = 0;        // host events validated by the outer lane
  int64_t covered_ops = 0;   // device ops run by the graph runner
  int64_t recorded_ops = 0;  // device ops run on the host while recording
  int64_t host_ops = 0;      // CPU random draws, 0-dim host counters, bare allocations
  int64_t views = 0;         // no device work
  std::map<std::string, int64_t> inline_ops;  // device ops that ran on the host, by name
  int64_t feeds = 0;
  int64_t copied_bytes = 0;  // of inputs that a covered step of the outer lane could not read where they are
  int64_t fetches = 0;
  std::array<int64_t, static_cast<size_t>(FlushReason::kCount)> flushes{};
  std::vector<Divergence> divergences;  // the first kDivergencesMax
  int64_t divergence_count = 0;
  int64_t replayed_events = 0;
  int64_t host_wait_ns = 0;
  std::shared_ptr<TierOutcome> outcome;  // covered steps of the outer lane

  static constexpr size_t kDivergencesMax = 16;

  void Flush(FlushReason reason) { ++flushes[static_cast<size_t>(reason)]; }
  void Diverge(Divergence divergence);
  int64_t InlineOps() const;
  int64_t DeviceOps() const { return covered_ops + recorded_ops + InlineOps(); }
};

}  // namespace outrider::seam
