#pragma once
// The pre-gate as requests see it: gives each of them the experts of the tokens that have none yet.

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "serve/executor.h"
#include "serve/request_state.h"
#include "serve/stats.h"

namespace outrider::serve {

// Tokens that one pass of the router reads.
class RouteWork {
 public:
  // Those of `states` that have no expert, in order, `tokens_max` at most. Each state holds route pages for its whole
  // text, and keeps text and pages until Run.
  RouteWork(std::span<RequestState* const> states, int64_t tokens_max);

  std::span<RequestState* const> states() const { return states_; }  // whose tokens these are
  int64_t tokens() const { return std::ssize(experts_); }
  double seconds() const { return seconds_; }  // that Run took

  // The states get their experts. A failure changes nothing of them, the router's pages of the tokens are undefined
  // then. Codes: those of the router; E_INTERNAL it threw.
  base::Result<void> Run(Pregate& pregate);

 private:
  void Apply();

  std::vector<RequestState*> states_;
  std::vector<RouteRun> runs_;  // one each
  std::vector<ExpertId> experts_;
  double seconds_ = 0;
};

// Routes the whole planned text again, into `pages`, and counts the ids that differ from its plan.
base::Result<void> ConfirmPlan(Pregate& pregate, const RequestState& state, std::span<const int32_t> pages,
                               EngineStats& stats);

}  // namespace outrider::serve
