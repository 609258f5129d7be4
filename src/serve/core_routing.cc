// Plans of texts: of prompts before they run, of what was written as soon as it was drawn.
#include <algorithm>
#include <functional>
#include <vector>

#include "serve/core.h"

namespace outrider::serve {
namespace {

constexpr int64_t kRoutedPerChunk = 2;  // chunks of prompts that a step routes: one runs, a policy has a choice

}  // namespace

// Prompts get the plan of their next tokens, those of high priority first.
void EngineCore::RouteAdmitted() {
  if (pregate_ == nullptr) return;
  std::vector<RequestState*> unplanned;
  for (const auto& state : running_) {
    if (!state->planned()) unplanned.push_back(state.get());
  }
  std::ranges::stable_sort(unplanned, std::greater<>(),
                           [](const RequestState* state) { return state->request.priority; });
  RouteWork work(unplanned, kRoutedPerChunk * options_.limits.prefill_tokens);
  if (const auto routed = Route(work); !routed) {
    for (RequestState* state : work.states()) Close(*state, Finish::kError, routed.error().Text());
  }
  EraseEnded();
  for (const auto& state : running_) {
    if (state->ready(true) <= 0) state->ready_since = step_ + 1;
  }
}

// After a failure the states have no more of their plans than before.
base::Result<void> EngineCore::Route(RouteWork& work) {
  const auto done = work.Run(*pregate_);
  stats_.router_s += work.seconds();
  if (done)
    stats_.routed_tokens += work.tokens();
  else
    NoteLost(done.error());
  return done;
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
  const auto routed = Route(work);
  if (routed) return;
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
  if (const auto confirmed = ConfirmPlan(*pregate_, state, probe.route_pages, stats_); !confirmed) {
    ++stats_.degraded["plan could not be confirmed"];
    NoteLost(confirmed.error());
  }
  pages_.ReleaseRoute(probe);
}

}  // namespace outrider::serve
