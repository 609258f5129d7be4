#pragma once
// A request between Submit and its last event. Owned by the engine's thread once it left the inbox.

#include <cstdint>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "sampling/penalties.h"
#include "serve/options.h"
#include "serve/request.h"

namespace outrider::serve {

struct RequestState {
  StreamId id = 0;
  Request request;
  int64_t deadline_ns = 0;  // of the engine's clock; 0: none
  int64_t first_by_ns = 0;  // likewise, of the first token
  int64_t text_max = 0;     // tokens of prompt and text together, at most

  std::vector<int32_t> text;      // the prompt and what was written
  std::vector<ExpertId> experts;  // the plan: of text[0, experts.size()), whose router keys lie in route_pages
  std::vector<int32_t> kv_pages, route_pages;
  int64_t computed = 0;  // tokens of `text` whose keys and values lie in kv_pages

  int64_t queued_since = 0;  // step
  int64_t ready_since = 0;   // step
  int64_t cached = 0;        // prompt tokens that the prefix cache had
  int64_t echoed = 0;        // prompt tokens behind the first whose log-probability was told
  int64_t told_experts = 0;
  int64_t draws = 0;   // tokens drawn
  bool ended = false;  // the last event is told, the pages are given back
  sampling::TokenCounts counts;

  int64_t prompt_tokens() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t length() const { return static_cast<int64_t>(text.size()); }
  int64_t written() const { return length() - prompt_tokens(); }
  int64_t rest() const { return length() - computed; }  // tokens to run before the next one can be drawn
  bool planned() const { return experts.size() == text.size(); }
  // Tokens that may run; of a model `with_plan` none without its expert.
  int64_t ready(bool with_plan) const { return with_plan ? std::ssize(experts) - computed : rest(); }
  // The next token to run is one that was written; else its prompt is not done, or is run again.
  bool decodes() const { return rest() == 1 && written() > 0; }
  bool echoes() const { return request.echo_logprobs && request.logprobs >= 0; }
  bool penalised() const {
    const SamplingParams& s = request.sampling;
    return s.presence_penalty != 0 || s.frequency_penalty != 0 || s.repetition_penalty != 1;
  }
  // Of a row of logits it asks for the likeliest id alone.
  bool greedy() const { return request.sampling.temperature <= 0 && request.logprobs < 0 && !penalised(); }
};

// Takes the memory that the text will need, so that no step has to ask for it.
inline std::unique_ptr<RequestState> MakeState(Request request, int64_t text_max) {
  auto state = std::make_unique<RequestState>();
  state->text_max = text_max;
  state->text.reserve(static_cast<size_t>(text_max));
  state->text = request.prompt;
  state->request = std::move(request);
  if (state->penalised()) state->counts.AddPrompt(state->text);
  return state;
}

// By when it is to have what it asked for, of a request that came in at `now_ns`.
inline void SetTimes(RequestState& state, const EngineOptions& options, int64_t now_ns) {
  constexpr int64_t kNsPerMs = 1'000'000;
  if (state.request.deadline_ms > 0) state.deadline_ns = now_ns + state.request.deadline_ms * kNsPerMs;
  if (options.late_first == EngineOptions::LateFirst::kEnd)
    state.first_by_ns = now_ns + options.ttft_goal_ms * kNsPerMs;
}

}  // namespace outrider::serve
