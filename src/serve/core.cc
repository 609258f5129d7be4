#include "serve/core.h"

#include <algorithm>
#include <utility>

namespace outrider::serve {
namespace {

constexpr int64_t kCachedPagesEvery = 32;  // steps between two counts of cached pages, which take long
constexpr int64_t kRoomEvery = 32;         // steps between two looks at whether the goal of time per token can be kept

std::vector<int64_t> FfnBytesTable(const Executor& executor) {
  std::vector<int64_t> table(size_t{1} << executor.shape().experts);
  for (size_t set = 0; set < table.size(); ++set) table[set] = executor.FfnBytes(static_cast<uint16_t>(set));
  return table;
}

void Insert(RunningList& list, std::unique_ptr<RequestState> state) {
  const auto place = std::lower_bound(list.begin(), list.end(), state->id,
                                      [](const auto& entry, StreamId id) { return entry->id < id; });
  list.insert(place, std::move(state));
}

int64_t& Outcome(EngineStats& stats, Finish finish) {
  switch (finish) {
    case Finish::kStop:
      return stats.stopped;
    case Finish::kLength:
      return stats.length;
    case Finish::kCancelled:
      return stats.cancelled;
    case Finish::kDeadline:
      return stats.deadline;
    default:
      return stats.failed;
  }
}

}  // namespace

EngineCore::EngineCore(Executor& executor, Pregate* pregate, const EngineOptions& options, Tell tell)
    : executor_(executor),
      pregate_(pregate),
      options_(options),
      tell_(std::move(tell)),
      pages_(executor.shape(), options),
      ffn_bytes_(FfnBytesTable(executor)),
      limits_(options.limits),
      step_model_(options.limits) {
  if (options.tpot_goal_ms > 0 && executor.shape().experts > 0) {
    goal_age_.emplace(TpotGoalS(), limits_.age_max,
                      sched::HoldingCase{.experts = executor.shape().experts,
                                         .distinct_experts = limits_.distinct_experts,
                                         .running = options.running_max,
                                         .decode_tokens = limits_.decode_tokens});
    limits_.age_max = goal_age_->age();
  }
  stats_.expert_tokens.resize(static_cast<size_t>(executor.shape().experts));
  // No request is lost on its way from one list to the other because memory ran out.
  queue_.reserve(static_cast<size_t>(options.queued_max + options.running_max));
  running_.reserve(static_cast<size_t>(options.running_max));
}

void EngineCore::Add(std::unique_ptr<RequestState> state) {
  state->queued_since = step_;
  ++stats_.submitted;
  Insert(queue_, std::move(state));
}

void EngineCore::End(StreamId id, Finish finish, const std::string& error) {
  for (RunningList* list : {&queue_, &running_}) {
    for (auto& state : *list) {
      if (state->id == id) Close(*state, finish, error);
    }
  }
  EraseEnded();
}

void EngineCore::EndAll(enum Finish finish, const std::string& error) {
  for (RunningList* list : {&queue_, &running_}) {
    for (auto& state : *list) Close(*state, finish, error);
  }
  EraseEnded();
}

bool EngineCore::Step() {
  if (Idle()) return false;
  if (!stats_.device_error.empty()) {
    EndAll(Finish::kError, stats_.device_error);
    return true;
  }
  const int64_t prefill_before = stats_.prefill_tokens, decode_before = stats_.decode_tokens;
  const int64_t prompts_before = PromptTokensDone();
  step_cost_ = {};
  const double others_before = stats_.executor_s + stats_.router_s + stats_.policy_s;
  const int64_t start_ns = options_.now_ns();
  EndOverdue();
  prompt_passes_.Arrived(Admit(), start_ns);
  ReserveAhead();
  RouteAdmitted();
  const std::vector<sched::ReadyItem> items = ReadyItems(running_, pregate_ != nullptr);
  const bool prompts_wait =
      !queue_.empty() || std::ranges::count(items, sched::Lane::kPrefill, &sched::ReadyItem::lane);
  if (!items.empty()) {
    if (auto plan = Choose(items)) {
      Run(SliceRuns(*plan, running_, options_.echo_rows_max));
    } else {
      FailStep(plan.error().Text());
    }
  }
  EraseEnded();
  if (options_.self_check == EngineOptions::SelfCheck::kOn) Count(Violations());
  const double seconds = static_cast<double>(options_.now_ns() - start_ns) * 1e-9;
  const int64_t prefill = stats_.prefill_tokens - prefill_before, decode = stats_.decode_tokens - decode_before;
  goodput_rate_.Observe(static_cast<double>(prefill + decode), seconds);
  if (prompts_wait) prefill_rate_.Observe(static_cast<double>(PromptTokensDone() - prompts_before), seconds);
  if (step_ % kCachedPagesEvery == 0) stats_.kv_pages_cached = pages_.KvCached();
  if (!items.empty()) ObserveStep(seconds, decode, prefill);
  stats_.step_seconds.Add(seconds);
  stats_.host_s += seconds - (stats_.executor_s + stats_.router_s + stats_.policy_s - others_before);
  ++stats_.steps;
  ++step_;
  return true;
}

void EngineCore::ObserveStep(double seconds, int64_t texts, int64_t prompt_tokens) {
  const double pass_s = step_cost_.prompt_seconds;
  step_times_.Add(seconds);
  step_model_.Add(texts, pass_s > 0 ? 0 : prompt_tokens, seconds - pass_s);
  prompt_passes_.AddPass(step_cost_.prompt_tokens, pass_s);
  if (texts > 0) prompt_passes_.AddRest(seconds - pass_s);
  prompt_budget_.Spent(pass_s);
  if (step_times_.steps() % kRoomEvery == 0) {
    const bool had = std::exchange(goal_has_room_, sched::GoalHasRoom(Fit(), TpotGoalS(), options_.limits));
    if (had && !goal_has_room_) ++stats_.degraded["a step of one text takes longer than the goal of time per token"];
  }
  if (!goal_age_) return;
  if (goal_age_->Add(seconds)) ++stats_.degraded["nothing is held: the goal of time per token leaves no room"];
  limits_.age_max = goal_age_->age();
}

void EngineCore::FailStep(const std::string& error) {
  ++stats_.failed_steps;
  for (auto& state : running_) {
    if (!state->ended) Close(*state, Finish::kError, error);
  }
  EraseEnded();
}

void EngineCore::EndOverdue() {
  const int64_t now_ns = options_.now_ns();
  const double rate = sched::PromptTokensPerS(Fit(), TpotGoalS(), Writing(), options_.limits);
  for (RunningList* list : {&queue_, &running_}) {
    for (auto& state : *list) {
      const bool late = FirstTokenIsLate(*state, now_ns, rate);
      if (!late && (state->deadline_ns == 0 || now_ns < state->deadline_ns)) continue;
      stats_.late_first += late ? 1 : 0;
      Close(*state, Finish::kDeadline, "");
    }
  }
  EraseEnded();
}

// Even if its prompt ran from now on, and alone. Where prompts have passes of their own, a lane of it may run at once.
bool EngineCore::FirstTokenIsLate(const RequestState& state, int64_t now_ns, double prompt_tokens_per_s) const {
  if (state.first_by_ns == 0 || state.draws > 0) return false;
  const int64_t at_once = Fit().setup_s > 0 ? options_.limits.prefill_tokens : 0;
  const auto later = static_cast<double>(std::max<int64_t>(0, state.rest() - at_once));
  const double own_s = prompt_tokens_per_s > 0 ? later / prompt_tokens_per_s : 0;
  return static_cast<double>(now_ns) + own_s * 1e9 >= static_cast<double>(state.first_by_ns);
}

int64_t EngineCore::Writing() const {
  return std::ranges::count_if(running_, [](const StatePtr& state) { return state->decodes(); });
}

int64_t EngineCore::TextsMax() const {
  return sched::TextsWithin(Fit(), TpotGoalS(), options_.running_max, options_.limits);
}

// The oldest of the highest class; a request of the lower class that waited long enough counts as one of the higher.
RunningList::iterator EngineCore::NextQueued() {
  return std::find_if(queue_.begin(), queue_.end(), [this](const StatePtr& state) {
    return state->request.priority > 0 || step_ - state->queued_since >= options_.priority_age_steps;
  });
}

int64_t EngineCore::Admit() {
  const int64_t texts_max = TextsMax();
  int64_t admitted = 0;
  while (!queue_.empty() && static_cast<int64_t>(running_.size()) < texts_max) {
    auto next = NextQueued();
    if (next == queue_.end()) next = queue_.begin();
    if (!TakePages(**next, static_cast<int64_t>(running_.size()))) break;
    (*next)->ready_since = step_;
    Insert(running_, std::move(*next));
    queue_.erase(next);
    ++admitted;
  }
  return admitted;
}

// Pages for the whole text so far, so that its chunks never wait for any. One page for each of the `others` that run
// stays free, or they would preempt this one at once.
bool EngineCore::TakePages(RequestState& state, int64_t others) {
  const bool had_plan = !state.experts.empty();
  pages_.Match(state);
  const int64_t need = pages_.KvPagesOf(state.length()) - static_cast<int64_t>(state.kv_pages.size());
  bool taken =
      (pages_.KvFree() >= need + others || pages_.KvWithin() >= need + others) && pages_.GrowKv(state, state.length());
  while (taken && !pages_.GrowRoute(state, state.length())) taken = DropAPlan(state);
  if (taken) {
    stats_.prefix_hit_tokens += state.computed;
    if (!had_plan) stats_.plan_hit_tokens += static_cast<int64_t>(state.experts.size());
    if (state.draws == 0) state.cached = state.computed;
    return true;
  }
  pages_.ReleaseKv(state);
  if (!had_plan) pages_.ReleaseRoute(state);
  return false;
}

// Everyone gets the pages of the token to run, and of the router's for the one drawn behind it, the oldest first.
void EngineCore::ReserveAhead() {
  for (size_t i = 0; i < running_.size();) {
    RequestState& state = *running_[i];
    if (!pages_.GrowKv(state, state.length())) {
      Preempt();
    } else if (pages_.GrowRoute(state, std::min(state.length() + 1, state.text_max))) {
      ++i;
    } else if (!DropAPlan(state)) {
      Preempt();
    }
  }
}

// A queued request that was preempted holds its plan and the router's pages; the newest gives them up first.
bool EngineCore::DropAPlan(const RequestState& keep) {
  for (auto state = queue_.rbegin(); state != queue_.rend(); ++state) {
    if ((*state)->route_pages.empty() || state->get() == &keep) continue;
    pages_.ReleaseRoute(**state);
    ++stats_.dropped_plans;
    return true;
  }
  return false;
}

// The newest request starts over later; its text and its plan stay, if that is whole.
void EngineCore::Preempt() {
  StatePtr state = std::move(running_.back());
  running_.pop_back();
  pages_.Remember(*state);
  pages_.ReleaseKv(*state);
  if (!state->planned()) pages_.ReleaseRoute(*state);
  state->queued_since = step_;
  ++stats_.preemptions;
  Insert(queue_, std::move(state));
}

void EngineCore::Close(RequestState& state, Finish finish, const std::string& error) {
  Event event;
  event.finish = finish;
  event.error = error;
  CloseWith(state, std::move(event));
}

void EngineCore::CloseWith(RequestState& state, Event event) {
  if (state.ended) return;
  event.stream = state.id;
  event.prompt_tokens = state.prompt_tokens();
  event.cached_tokens = state.cached;
  event.written_tokens = state.written();
  ++Outcome(stats_, event.finish);
  if (state.draws > 0) text_lengths_.Ended();
  if (event.finish != Finish::kError) {
    if (options_.self_check == EngineOptions::SelfCheck::kOn) Confirm(state);
    pages_.Remember(state);
  }
  pages_.ReleaseKv(state);
  pages_.ReleaseRoute(state);
  state.ended = true;
  tell_(std::move(event));
}

void EngineCore::EraseEnded() {
  for (RunningList* list : {&queue_, &running_})
    std::erase_if(*list, [](const StatePtr& state) { return state->ended; });
}

double EngineCore::TextTokens() const {
  if (text_lengths_.Mean() > 0 || running_.empty()) return text_lengths_.Mean();
  int64_t left = 0;
  for (const auto& state : running_) left += state->text_max - state->length();
  return static_cast<double>(left) / static_cast<double>(running_.size());
}

EngineStats EngineCore::Stats() const {
  EngineStats out = stats_;
  out.queued = static_cast<int64_t>(queue_.size());
  out.running = static_cast<int64_t>(running_.size());
  out.kv_pages = executor_.shape().kv_pages;
  if (Idle()) out.kv_pages_cached = pages_.KvCached();
  out.kv_pages_used = std::max<int64_t>(0, pages_.KvTaken() - out.kv_pages_cached);
  out.route_pages = executor_.shape().route_pages;
  out.route_pages_used = pages_.RouteTaken();
  for (const RunningList* list : {&queue_, &running_}) {
    for (const auto& state : *list) {
      out.backlog_tokens += state->text_max - state->computed;
      out.backlog_prompt_tokens += std::max<int64_t>(0, state->prompt_tokens() - state->computed);
    }
  }
  out.writing = Writing();
  out.texts_max = TextsMax();
  out.step_fit = Fit();
  out.text_tokens = TextTokens();
  out.hold_age_max = limits_.age_max;
  out.bytes_per_s = rates_.bytes_per_s();
  out.token_s = rates_.token_s();
  out.step_p95_s = step_times_.P95();
  out.prefill_tokens_per_s = prefill_rate_.PerSecond();
  out.goodput_tokens_per_s = goodput_rate_.PerSecond();
  return out;
}

}  // namespace outrider::serve
