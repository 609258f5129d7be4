#pragma once
// What an engine may hold and do at once. Every queue, buffer and batch has its maximum here.

#include <cstdint>
#include <functional>

#include "base/clock.h"
#include "sched/step_plan.h"

namespace outrider::serve {

using Policy = std::function<sched::StepPlan(const sched::Snapshot&)>;

// body(0) to body(count - 1), each once, on any threads. Bodies throw nothing.
using ForEach = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

struct EngineOptions {
  Policy policy;  // called on the engine's thread alone
  sched::StepLimits limits{
      .decode_tokens = 32, .prefill_tokens = 512, .distinct_experts = 0, .age_max = 64, .prompt_hold_max = 16};
  // Of time per token: tokens are held only as long as it allows (holding.h), age_max at most, and texts at once and
  // prompt tokens of a step are bounded so that steps come within it (step_fit.h); 0: neither.
  int64_t tpot_goal_ms = 0;
  // Of the first token: a request whose own is predicted to come later is refused, as with a deadline; 0: none is.
  int64_t ttft_goal_ms = 0;
  // kEnd: what was admitted ends, as with a deadline, once its first token can no longer come within ttft_goal_ms.
  enum class LateFirst : uint8_t { kServe, kEnd } late_first = LateFirst::kServe;
  int64_t running_max = 64;         // requests that hold KV pages
  int64_t queued_max = 256;         // requests that wait for them
  int64_t tokens_admitted_max = 0;  // prompts and texts to be, of all requests; 0: four times what the KV pages hold
  int64_t text_tokens_max = 0;  // prompt and text of one request; 0: the context, or all KV pages if those are fewer
  int64_t streams_max = 1'024;  // requests whose last event was not polled yet
  int64_t buffered_tokens_max = 4'096;  // of one stream, not polled yet; a reader that is slower is cancelled
  int64_t echo_rows_max = 64;           // rows of logits of prompts in one step
  int64_t priority_age_steps = 256;     // a queued request of priority 0 this old counts as priority 1
  int64_t logprobs_max = 20;            // of Request::logprobs
  int64_t stop_ids_max = 64;            // of Request::stop_ids
  enum class PrefixCache : uint8_t { kOff, kOn } prefix_cache = PrefixCache::kOn;
  // kOn: every step checks that no page leaked, and every text that ends is routed again and compared with its plan.
  enum class SelfCheck : uint8_t { kOff, kOn } self_check = SelfCheck::kOff;
  // True: the next page is refused as if there were none. For fault injection; empty: never.
  std::function<bool()> page_fault;
  std::function<int64_t()> now_ns = &base::NowNs;  // monotonic
  ForEach for_each;  // called on the engine's thread, while neither a pass nor the router works; empty: in turn
};

}  // namespace outrider::serve
