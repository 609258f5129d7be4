#include "serve/router_pass.h"

#include <algorithm>
#include <exception>
#include <string>

#include "base/clock.h"

namespace outrider::serve {

RouteWork::RouteWork(std::span<RequestState* const> states, int64_t tokens_max) {
  int64_t tokens = 0;
  for (RequestState* state : states) {
    const size_t from = state->experts.size();
    const int64_t count = std::min(std::ssize(state->text) - static_cast<int64_t>(from), tokens_max - tokens);
    if (count <= 0) continue;
    runs_.push_back({.ids = std::span(state->text).subspan(from, static_cast<size_t>(count)),
                     .position = static_cast<int64_t>(from),
                     .route_pages = state->route_pages,
                     .previous = from > 0 ? state->experts.back() : kNoExpert});
    states_.push_back(state);
    tokens += count;
  }
  experts_.assign(static_cast<size_t>(tokens), kNoExpert);
}

base::Result<void> RouteWork::Run(Pregate& pregate) {
  if (states_.empty()) return {};
  const int64_t start_ns = base::NowNs();
  base::Result<void> done;
  try {
    done = pregate.Route(runs_, experts_);
  } catch (const std::exception& e) {
    done = base::Fail("E_INTERNAL", std::string("the router: ") + e.what());
  }
  seconds_ = static_cast<double>(base::NowNs() - start_ns) * 1e-9;
  if (done) Apply();
  return done;
}

void RouteWork::Apply() {
  auto next = experts_.cbegin();
  for (size_t i = 0; i < runs_.size(); ++i) {
    const auto end = next + std::ssize(runs_[i].ids);
    states_[i]->experts.insert(states_[i]->experts.end(), next, end);
    next = end;
  }
}

base::Result<void> ConfirmPlan(Pregate& pregate, const RequestState& state, std::span<const int32_t> pages,
                               EngineStats& stats) {
  std::vector<ExpertId> again(state.experts.size(), kNoExpert);
  if (again.empty()) return {};
  const RouteRun run{.ids = std::span(state.text).first(again.size()), .route_pages = pages};
  if (auto done = pregate.Route({&run, 1}, again); !done) return done;
  for (size_t i = 0; i < again.size(); ++i) stats.plan_mismatches += again[i] != state.experts[i] ? 1 : 0;
  stats.plan_checked += static_cast<int64_t>(again.size());
  return {};
}

}  // namespace outrider::serve
