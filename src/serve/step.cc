#include "serve/step.h"

#include <algorithm>
#include <string>

#include "base/clock.h"

namespace outrider::serve {
namespace {

RequestState* Find(const RunningList& running, uint64_t id) {
  const auto found = std::lower_bound(running.begin(), running.end(), id,
                                      [](const auto& state, uint64_t key) { return state->id < key; });
  return found != running.end() && (*found)->id == id ? found->get() : nullptr;
}

// The first token of `state` from `computed` on whose row of logits is wanted, when it runs up to its token `end`.
int64_t FirstRow(const RequestState& state, int64_t end) {
  const int64_t last = end == state.length() ? end - 1 : end;
  const bool echo = state.echoes() && state.echoed + 1 < state.prompt_tokens();
  return echo ? std::clamp(state.echoed, state.computed, last) : last;
}

}  // namespace

std::vector<sched::ReadyItem> ReadyItems(const RunningList& running, bool with_plan) {
  std::vector<sched::ReadyItem> items;
  items.reserve(running.size());
  for (const auto& state : running) {
    const int64_t tokens = state->ready(with_plan);
    if (tokens <= 0) continue;
    std::span<const uint8_t> experts;
    if (!state->experts.empty()) experts = std::span(state->experts).subspan(static_cast<size_t>(state->computed));
    items.push_back({.request = sched::RequestId(state->id),
                     .lane = state->decodes() ? sched::Lane::kDecode : sched::Lane::kPrefill,
                     .experts = experts,
                     .tokens = tokens,
                     .ready_since = state->ready_since,
                     .priority = state->request.priority});
  }
  return items;
}

base::Result<void> CheckPlan(const sched::StepPlan& plan, const sched::Snapshot& snapshot, int64_t step_tokens_max) {
  const auto refuse = [](const std::string& what) { return base::Fail("E_PLAN", "step plan: " + what); };
  std::vector<uint64_t> seen;
  int64_t tokens = 0;
  for (const sched::Slice& slice : plan.slices) {
    const auto item = std::lower_bound(snapshot.items.begin(), snapshot.items.end(), slice.request,
                                       [](const sched::ReadyItem& a, sched::RequestId id) { return a.request < id; });
    const std::string name = "request " + std::to_string(slice.request.value);
    if (item == snapshot.items.end() || item->request != slice.request) return refuse(name + " is not ready");
    if (item->lane != slice.lane) return refuse(name + " is in the other lane");
    if (slice.tokens < 1 || slice.tokens > item->tokens)
      return refuse(name + ": found " + std::to_string(slice.tokens) + " tokens, expected 1 to " +
                    std::to_string(item->tokens));
    seen.push_back(slice.request.value);
    tokens += slice.tokens;
  }
  std::sort(seen.begin(), seen.end());
  if (std::adjacent_find(seen.begin(), seen.end()) != seen.end()) return refuse("a request is in it twice");
  if (tokens > step_tokens_max)
    return refuse("found " + std::to_string(tokens) + " tokens, expected at most " + std::to_string(step_tokens_max));
  if (plan.slices.empty() && !snapshot.items.empty()) return refuse("nothing runs, though something is ready");
  return {};
}

std::vector<SliceRun> SliceRuns(const sched::StepPlan& plan, const RunningList& running, int64_t echo_rows_max) {
  std::vector<SliceRun> runs;
  int64_t row = 0, echo_rows = 0;
  for (const sched::Slice& slice : plan.slices) {
    SliceRun run{.state = Find(running, slice.request.value), .tokens = slice.tokens};
    const RequestState& state = *run.state;
    int64_t end = state.computed + run.tokens;
    int64_t from = FirstRow(state, end);
    const int64_t excess = end - from - 1 - (echo_rows_max - echo_rows);  // a token that draws has its row in any case
    if (excess > 0) {
      end -= excess;
      if (end <= state.computed) continue;  // no row is left for it: it waits for the next step
      from = FirstRow(state, end);
    }
    run.tokens = end - state.computed;
    run.rows = end - from;
    run.row = row;
    row += run.rows;
    echo_rows += std::max<int64_t>(0, run.rows - 1);
    runs.push_back(run);
  }
  return runs;
}

base::Result<RunCost> StepRows::Run(Executor& executor, std::span<const TokenRun> runs, int64_t rows, bool greedy) {
  greedy_ = greedy;
  vocab_ = static_cast<size_t>(executor.shape().vocab);
  if (greedy) {
    likeliest_.resize(static_cast<size_t>(rows));
    return executor.RunGreedy(runs, likeliest_);
  }
  const size_t numbers = static_cast<size_t>(rows) * vocab_;
  if (logits_.size() < numbers) logits_.resize(numbers);
  return executor.Run(runs, std::span(logits_).first(numbers));
}

StepRows::Of StepRows::Find(const SliceRun& slice) const {
  const auto row = static_cast<size_t>(slice.row), rows = static_cast<size_t>(slice.rows);
  if (greedy_) return {.likeliest = std::span(likeliest_).subspan(row, rows), .logits = {}};
  return {.likeliest = {}, .logits = std::span(logits_).subspan(row * vocab_, rows * vocab_)};
}

base::Result<RunCost> RunSlices(Executor& executor, std::span<const SliceRun> slices, StepRows& to,
                                EngineStats& stats) {
  std::vector<TokenRun> runs;
  int64_t rows = 0;
  bool greedy = true;
  for (const SliceRun& slice : slices) {
    const RequestState& state = *slice.state;
    const auto from = static_cast<size_t>(state.computed), count = static_cast<size_t>(slice.tokens);
    TokenRun run;
    run.ids = std::span(state.text).subspan(from, count);
    run.position = state.computed;
    if (executor.shape().experts > 0) {
      if (state.experts.size() < from + count) {
        ++stats.unplanned_tokens;
        return base::Fail("E_PLAN", "request " + std::to_string(state.id) + ": a token of the step has no expert");
      }
      run.experts = std::span(state.experts).subspan(from, count);
    }
    run.kv_pages = state.kv_pages;
    run.logits_from = slice.tokens - slice.rows;
    run.prompt = std::clamp<int64_t>(state.prompt_tokens() - state.computed, 0, slice.tokens);
    rows += slice.rows;
    greedy = greedy && (slice.rows == 0 || state.greedy());
    runs.push_back(run);
  }
  return to.Run(executor, runs, rows, greedy);
}

}  // namespace outrider::serve
