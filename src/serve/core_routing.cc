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
    const auto result = work.Run(*pregate_);
    if (!Routed(work, result, work.seconds())) EndUnplanned(work, result.error());
    EraseEnded();
  }
  for (const auto& state : running_) {
    if (state->ready(true) <= 0) state->ready_since = step_ + 1;
  }
  return beside ? std::move(work) : RouteWork{};
}

// Behind RunSlices, and before anything is done with its requests: they may be those whose prompts are routed.
void EngineCore::FinishRouting() {
  if (!route_ahead_) return;
  const int64_t start_ns = base::NowNs();
  RouteAhead::Done done = route_ahead_->Finish();
  stats_.routed_beside_s += done.work.seconds();
  const double waited_s = static_cast<double>(base::NowNs() - start_ns) * 1e-9;
  if (!Routed(done.work, done.result, waited_s)) EndUnplanned(done.work, done.result.error());
}

// False: the states have no more of their plans than before.
bool EngineCore::Routed(RouteWork& work, const base::Result<void>& result, double waited_s) {
  stats_.router_s += waited_s;
  if (!result) return false;
  stats_.routed_tokens += work.tokens();
  work.Apply();
  return true;
}

// They stay in their list.
void EngineCore::EndUnplanned(const RouteWork& work, const base::Error& error) {
  for (RequestState* state : work.states()) Close(*state, Finish::kError, error.Text());
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
  const auto result = work.Run(*pregate_);
  if (Routed(work, result, work.seconds())) return;
  for (const size_t i : places) {
    events[i].finish = Finish::kError;
    events[i].error = result.error().Text();
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
