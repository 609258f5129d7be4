// Plans of texts: of prompts before they run, of what was written as soon as it was drawn.
#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "serve/core.h"

namespace outrider::serve {
namespace {

constexpr int64_t kRoutedPerChunk = 2;  // chunks of prompts that a step routes

}  // namespace

// Prompts get the plan of their next tokens at once, those of high priority first; or it is given back, to be made
// beside this step's pass, where the machine leaves room for it and others have something to run.
RouteWork EngineCore::RouteAdmitted() {
  if (pregate_ == nullptr) return {};
  std::vector<RequestState*> unplanned;
  for (const auto& state : running_) {
    if (!state->planned()) unplanned.push_back(state.get());
  }
  std::ranges::stable_sort(unplanned, std::greater<>(),
                           [](const RequestState* state) { return state->request.priority; });
  RouteWork work(unplanned, kRoutedPerChunk * options_.limits.prefill_tokens);
  const bool beside =
      route_ahead_ && std::ranges::any_of(running_, [](const StatePtr& state) { return state->ready(true) > 0; });
  if (!beside) {
    Routed(work, work.Run(*pregate_));
    EraseEnded();
  }
  for (const auto& state : running_) {
    if (state->ready(true) <= 0) state->ready_since = step_ + 1;
  }
  return beside ? std::move(work) : RouteWork{};
}

void EngineCore::FinishRouting() {
  if (!route_ahead_) return;
  const int64_t start_ns = base::NowNs();
  RouteAhead::Done done = route_ahead_->Finish();
  const double waited_s = static_cast<double>(base::NowNs() - start_ns) * 1e-9;
  Routed(done.work, done.result);
  stats_.routed_beside_s += done.work.seconds();
  stats_.router_s += waited_s - done.work.seconds();
}

// Requests whose plan could not be made end; they stay in their list.
void EngineCore::Routed(RouteWork& work, const base::Result<void>& result) {
  stats_.router_s += work.seconds();
  if (result) {
    stats_.routed_tokens += work.tokens();
    work.Apply();
    return;
  }
  for (RequestState* state : work.states()) Close(*state, Finish::kError, result.error().Text());
}

// The experts of the new tokens, so that the next step is known in full.
void EngineCore::RouteDrawn(std::span<const SliceRun> slices, std::span<Event> events) {
  std::vector<RequestState*> drawn;
  std::vector<size_t> places;
  for (size_t i = 0; i < slices.size(); ++i) {
    if (events[i].tokens.empty()) continue;
    drawn.push_back(slices[i].state);
    places.push_back(i);
  }
  if (pregate_ == nullptr || drawn.empty()) return;
  RouteWork work(drawn, std::ssize(drawn));
  const auto routed = work.Run(*pregate_);
  stats_.router_s += work.seconds();
  if (routed) {
    stats_.routed_tokens += work.tokens();
    return work.Apply();
  }
  for (const size_t i : places) {
    events[i].finish = Finish::kError;
    events[i].error = routed.error().Text();
  }
}

// With pages of its own, if there are any: the text's may be shared.
void EngineCore::Confirm(const RequestState& state) {
  if (pregate_ == nullptr) return;
  RequestState probe;
  if (!pages_.GrowRoute(probe, static_cast<int64_t>(state.experts.size()))) return;
  if (!ConfirmPlan(*pregate_, state, probe.route_pages, stats_)) ++stats_.degraded["plan could not be confirmed"];
  pages_.ReleaseRoute(probe);
}

}  // namespace outrider::serve
