#pragma once
// The pre-gate as requests see it: gives each of them the experts of the tokens that have none yet.

#include <span>

#include "base/result.h"
#include "serve/executor.h"
#include "serve/request_state.h"
#include "serve/stats.h"

namespace outrider::serve {

struct RouteCost {
  int64_t tokens = 0;
  double seconds = 0;
};

// One pass over all `states`; each holds route pages for its whole text. A failure leaves all plans as they were; the
// router's pages of the tokens that had no expert are undefined then. Without a pregate (a dense model): nothing to do.
base::Result<RouteCost> RouteRest(Pregate* pregate, std::span<RequestState* const> states);

// Routes the whole planned text again, into `pages`, and counts the ids that differ from its plan.
base::Result<void> ConfirmPlan(Pregate& pregate, const RequestState& state, std::span<const int32_t> pages,
                               EngineStats& stats);

}  // namespace outrider::serve
