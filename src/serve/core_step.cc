#include <algorithm>
#include <bit>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "sched/violations.h"
#include "serve/core.h"

namespace outrider::serve {

base::Result<sched::StepPlan> EngineCore::Choose(std::span<const sched::ReadyItem> items) {
  const ModelShape& shape = executor_.shape();
  const sched::Snapshot snapshot{.step = step_,
                                 .items = items,
                                 .limits = LimitsBeside(items),
                                 .experts = shape.experts,
                                 .ffn_bytes = ffn_bytes_,
                                 .fixed_bytes = executor_.FixedBytes(),
                                 .bytes_per_s = rates_.bytes_per_s(),
                                 .token_s = rates_.token_s(),
                                 .prompt_pass = prompt_passes_.Measured()};
  const int64_t start_ns = base::NowNs();
  sched::StepPlan plan = options_.policy(snapshot);
  stats_.policy_s += static_cast<double>(base::NowNs() - start_ns) * 1e-9;
  if (auto good = CheckPlan(plan, snapshot, shape.step_tokens_max); !good) return tl::unexpected(good.error());
  if (options_.self_check == EngineOptions::SelfCheck::kOn) {
    Count(sched::SnapshotViolations(snapshot));
    Count(sched::Violations(snapshot, plan));
  }
  stats_.held_items += static_cast<int64_t>(plan.held.size());
  for (const sched::Slice& slice : plan.slices) {
    const auto item = std::lower_bound(items.begin(), items.end(), slice.request,
                                       [](const sched::ReadyItem& a, sched::RequestId id) { return a.request < id; });
    stats_.hold_steps_max = std::max(stats_.hold_steps_max, step_ - item->ready_since);
  }
  return plan;
}

// Prompts get what the goal of time per token leaves of a step beside the texts that wait for it.
sched::StepLimits EngineCore::LimitsBeside(std::span<const sched::ReadyItem> items) {
  int64_t texts = 0, waiting = 0;
  bool urgent = false;
  for (const sched::ReadyItem& item : items) {
    (item.lane == sched::Lane::kDecode ? texts : waiting) += item.tokens;
    urgent |= item.lane == sched::Lane::kPrefill && item.priority > 0;
  }
  const sched::StepFit fit = Fit();
  sched::StepLimits limits = limits_;
  texts = std::min(texts, limits.decode_tokens);
  if (fit.setup_s > 0) {
    const double each_s = sched::PromptSecondsWithin(fit, TpotGoalS(), texts, options_.limits);
    const int64_t saved_for = prompt_budget_.Next(each_s, fit, waiting, options_.limits);
    limits.prefill_tokens = urgent || texts == 0 ? options_.limits.prefill_tokens : saved_for;
  } else {
    limits.prefill_tokens = sched::PromptTokensWithin(fit, TpotGoalS(), texts, options_.limits);
  }
  return limits;
}

void EngineCore::Run(std::span<const SliceRun> slices) {
  const auto cost = RunSlices(executor_, slices, rows_, stats_);
  if (!cost) {
    ++stats_.failed_steps;
    for (const SliceRun& slice : slices) Close(*slice.state, Finish::kError, cost.error().Text());
    NoteLost(cost.error());
    return;
  }
  step_cost_ = *cost;
  Tally(slices, *cost);
  std::vector<Drawn> drawn = DrawAll(slices);
  std::vector<Event> events;
  for (size_t i = 0; i < slices.size(); ++i) events.push_back(Advance(slices[i], std::move(drawn[i])));
  RouteDrawn(slices, events);
  TellEvents(slices, std::move(events));
}

// A machine that is lost is so for good: the next step ends everyone.
void EngineCore::NoteLost(const base::Error& error) {
  if (error.code == "E_DEVICE" && stats_.device_error.empty()) stats_.device_error = error.Text();
}

void EngineCore::Tally(std::span<const SliceRun> slices, const RunCost& cost) {
  int64_t prefill = 0, decode = 0;
  uint32_t distinct = 0;
  for (const SliceRun& slice : slices) {
    const RequestState& state = *slice.state;
    (state.decodes() ? decode : prefill) += slice.tokens;
    if (state.experts.empty()) continue;
    for (int64_t i = 0; i < slice.tokens; ++i) {
      const ExpertId expert = state.experts[static_cast<size_t>(state.computed + i)];
      ++stats_.expert_tokens[expert];
      distinct |= 1U << expert;
    }
  }
  stats_.prefill_tokens += prefill;
  stats_.decode_tokens += decode;
  stats_.distinct_experts += std::popcount(distinct);
  stats_.weight_bytes += cost.weight_bytes;
  stats_.ffn_bytes += cost.ffn_bytes;
  stats_.executor_s += cost.seconds;
  stats_.prompt_steps += prefill > 0 ? 1 : 0;
  stats_.prompt_pass_s += cost.prompt_seconds;
  rates_.Add(cost.weight_bytes, prefill + decode, cost.seconds);
}

// Rows of logits take long to read, likeliest ids no time.
std::vector<Drawn> EngineCore::DrawAll(std::span<const SliceRun> slices) const {
  std::vector<Drawn> drawn(slices.size());
  const auto draw = [&](int64_t i) {
    const SliceRun& slice = slices[static_cast<size_t>(i)];
    drawn[static_cast<size_t>(i)] = DrawFrom(slice, rows_.Find(slice));
  };
  if (options_.for_each && slices.size() > 1 && !rows_.greedy()) {
    options_.for_each(std::ssize(slices), draw);
  } else {
    for (int64_t i = 0; i < std::ssize(slices); ++i) draw(i);
  }
  return drawn;
}

// The slice is done: the request moves on, and takes what was drawn where its text ends.
Event EngineCore::Advance(const SliceRun& slice, Drawn drawn) {
  RequestState& state = *slice.state;
  Event event;
  event.stream = state.id;
  event.logprobs = std::move(drawn.echoed);
  state.echoed += static_cast<int64_t>(event.logprobs.size());
  const bool draws = slice.draws();
  state.computed += slice.tokens;
  state.ready_since = step_ + 1;
  if (draws || !drawn.token) Take(state, std::move(drawn), event);
  return event;
}

void EngineCore::Take(RequestState& state, Drawn drawn, Event& event) {
  if (!drawn.token) {
    event.finish = Finish::kError;
    event.error = drawn.token.error().Text();
    return;
  }
  if (state.draws == 0) pages_.Remember(state);
  ++state.draws;
  text_lengths_.Wrote(1);
  if (drawn.stops) {
    event.finish = Finish::kStop;
    return;
  }
  std::ranges::move(drawn.told, std::back_inserter(event.logprobs));
  ++stats_.written_tokens;
  state.text.push_back(*drawn.token);
  event.tokens.push_back(*drawn.token);
  if (state.penalised()) state.counts.AddWritten(*drawn.token);
  if (state.length() >= state.text_max) event.finish = Finish::kLength;
}

void EngineCore::TellEvents(std::span<const SliceRun> slices, std::vector<Event> events) {
  for (size_t i = 0; i < slices.size(); ++i) {
    RequestState& state = *slices[i].state;
    Event& event = events[i];
    const bool tells = !event.tokens.empty() || !event.logprobs.empty() || event.finish != Finish::kNone;
    if (!tells) continue;
    const auto told = static_cast<std::ptrdiff_t>(state.told_experts);
    event.experts.assign(state.experts.begin() + std::min(told, std::ssize(state.experts)), state.experts.end());
    state.told_experts += std::ssize(event.experts);
    if (event.finish != Finish::kNone) {
      CloseWith(state, std::move(event));
    } else if (!tell_(std::move(event))) {
      ++stats_.slow_readers;
      Close(state, Finish::kCancelled, "E_SLOW_READER: too many tokens wait to be read");
    }
  }
}

std::vector<std::string> EngineCore::Violations() const {
  std::vector<const RequestState*> holders;
  std::vector<std::string> out;
  for (const RunningList* list : {&queue_, &running_}) {
    for (const auto& state : *list) holders.push_back(state.get());
    if (!std::is_sorted(list->begin(), list->end(), [](const auto& a, const auto& b) { return a->id < b->id; }))
      out.push_back("requests are not in the order of their ids");
  }
  for (const auto& state : queue_) {
    if (!state->kv_pages.empty()) out.push_back("queued request " + std::to_string(state->id) + " holds KV pages");
  }
  for (const auto& state : running_) {
    if (state->computed >= state->length())
      out.push_back("running request " + std::to_string(state->id) + " has nothing to run");
    if (pregate_ != nullptr && (state->ready(true) < 0 || (state->decodes() && !state->planned())))
      out.push_back("running request " + std::to_string(state->id) + " has a token without an expert");
  }
  if (static_cast<int64_t>(running_.size()) > options_.running_max) out.push_back("more requests run than may");
  for (std::string& violation : pages_.Violations(holders)) out.push_back(std::move(violation));
  return out;
}

void EngineCore::Count(const std::vector<std::string>& violations) {
  if (violations.empty()) return;
  if (stats_.first_violation.empty()) stats_.first_violation = violations.front();
  stats_.invariant_violations += static_cast<int64_t>(violations.size());
}

}  // namespace outrider::serve
