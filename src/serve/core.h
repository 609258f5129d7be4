#pragma once
// The engine without its thread: requests, their pages, and steps over them. One thread uses it, nothing in it waits.
//
// A step: deadlines -> admit (pages of the prompt) -> a page ahead for everyone, preempting the newest -> plans of the
// prompts that have none -> snapshot -> policy -> run -> draw -> route what was drawn -> tell. What fails ends the
// requests of the step, with an error, and nobody else; but once the machine is lost (E_DEVICE), everyone.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "sched/rate_ewma.h"
#include "serve/drawing.h"
#include "serve/executor.h"
#include "serve/goal_age.h"
#include "serve/options.h"
#include "serve/pages.h"
#include "serve/prompt_budget.h"
#include "serve/prompt_passes.h"
#include "serve/rates.h"
#include "serve/request_state.h"
#include "serve/router_pass.h"
#include "serve/stats.h"
#include "serve/step.h"
#include "serve/step_model.h"
#include "serve/step_times.h"
#include "serve/text_lengths.h"

namespace outrider::serve {

class EngineCore {
 public:
  // Takes an event; false: the reader of that stream is too slow.
  using Tell = std::function<bool(Event)>;

  // `executor`, `pregate` (null for a dense model) outlive the core.
  EngineCore(Executor& executor, Pregate* pregate, const EngineOptions& options, Tell tell);

  void Add(std::unique_ptr<RequestState> state);
  // Ends a request with its last event, if it is still there.
  void End(StreamId id, Finish finish, const std::string& error);
  void EndAll(Finish finish, const std::string& error);
  // False: there was nothing to do.
  bool Step();
  // Ends the running requests: what a step that threw may have left in disorder.
  void FailStep(const std::string& error);

  bool Idle() const { return queue_.empty() && running_.empty(); }
  EngineStats Stats() const;
  // Of the caps on pages and requests, and of the pages; empty when all is well.
  std::vector<std::string> Violations() const;

 private:
  // Before a step (core.cc).
  void EndOverdue();
  bool FirstTokenIsLate(const RequestState& state, int64_t now_ns, double prompt_tokens_per_s) const;
  int64_t Writing() const;
  int64_t TextsMax() const;
  double TextTokens() const;
  int64_t Admit();
  RunningList::iterator NextQueued();
  bool TakePages(RequestState& state, int64_t others);
  void ReserveAhead();
  bool DropAPlan(const RequestState& keep);
  void Preempt();
  void Close(RequestState& state, Finish finish, const std::string& error);
  void CloseWith(RequestState& state, Event event);
  void EraseEnded();

  // Plans (core_routing.cc).
  void RouteAdmitted();
  base::Result<void> Route(RouteWork& work);
  void RouteDrawn(std::span<const SliceRun> slices, std::span<Event> events);
  void Confirm(const RequestState& state);

  // The step itself (core_step.cc).
  base::Result<sched::StepPlan> Choose(std::span<const sched::ReadyItem> items);
  void Run(std::span<const SliceRun> slices);
  void NoteLost(const base::Error& error);
  void Tally(std::span<const SliceRun> slices, const RunCost& cost);
  std::vector<Drawn> DrawAll(std::span<const SliceRun> slices) const;
  Event Advance(const SliceRun& slice, Drawn drawn);
  void Take(RequestState& state, Drawn drawn, Event& event);
  void TellEvents(std::span<const SliceRun> slices, std::vector<Event> events);
  int64_t PromptTokensDone() const { return stats_.prefill_tokens + stats_.prefix_hit_tokens; }
  sched::StepLimits LimitsBeside(std::span<const sched::ReadyItem> items);
  void ObserveStep(double seconds, int64_t texts, int64_t prompt_tokens);
  sched::StepFit Fit() const { return prompt_passes_.Complete(step_model_.fit()); }
  double TpotGoalS() const { return static_cast<double>(options_.tpot_goal_ms) * 1e-3; }
  void Count(const std::vector<std::string>& violations);

  static constexpr double kRateHalfLifeS = 10;

  Executor& executor_;
  Pregate* const pregate_;
  const EngineOptions options_;
  const Tell tell_;
  Pages pages_;
  std::vector<int64_t> ffn_bytes_;  // by set of experts
  Rates rates_;
  sched::StepLimits limits_;         // of the options, with the age that holds now
  std::optional<GoalAge> goal_age_;  // with a goal of time per token
  StepTimes step_times_;
  StepModel step_model_;
  PromptPasses prompt_passes_;
  PromptBudget prompt_budget_;
  RunCost step_cost_;  // of the step that runs
  bool goal_has_room_ = true;
  TextLengths text_lengths_;
  sched::RateEwma prefill_rate_{kRateHalfLifeS}, goodput_rate_{kRateHalfLifeS};
  RunningList queue_, running_;  // both by id, ascending
  StepRows rows_;
  int64_t step_ = 0;
  EngineStats stats_;
};

}  // namespace outrider::serve
