#include "serve/router_pass.h"

#include <algorithm>
#include <vector>

#include "base/clock.h"

namespace outrider::serve {

base::Result<RouteCost> RouteRest(Pregate* pregate, std::span<RequestState* const> states) {
  if (pregate == nullptr) return RouteCost{};
  std::vector<RouteRun> runs;
  std::vector<RequestState*> routed;
  size_t tokens = 0;
  for (RequestState* state : states) {
    const size_t from = state->experts.size();
    if (from == state->text.size()) continue;
    runs.push_back({.ids = std::span(state->text).subspan(from),
                    .position = static_cast<int64_t>(from),
                    .route_pages = state->route_pages,
                    .previous = from > 0 ? state->experts.back() : kNoExpert});
    routed.push_back(state);
    tokens += state->text.size() - from;
  }
  if (runs.empty()) return RouteCost{};
  std::vector<ExpertId> experts(tokens, kNoExpert);
  const int64_t start_ns = base::NowNs();
  if (auto done = pregate->Route(runs, experts); !done) return tl::unexpected(done.error());
  auto next = experts.cbegin();
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto end = next + static_cast<std::ptrdiff_t>(runs[i].ids.size());
    routed[i]->experts.insert(routed[i]->experts.end(), next, end);
    next = end;
  }
  return RouteCost{static_cast<int64_t>(tokens), static_cast<double>(base::NowNs() - start_ns) * 1e-9};
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
