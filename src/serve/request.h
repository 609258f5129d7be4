#pragma once
// What goes into the serving engine and what comes out of it.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "serve/executor.h"

namespace outrider::serve {

struct SamplingParams {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;       // 0: all
  double top_p = 1;
  double presence_penalty = 0, frequency_penalty = 0;  // of tokens written so far
  double repetition_penalty = 1;                       // of tokens of prompt and text
  uint64_t seed = 0;                                   // with the position it decides each draw, whatever else runs
};

// Whose a request is. Tenants share the engine, not its prefix cache unless they have the same salt.
struct Tenant {
  std::string name;          // whose requests the caps count together
  int64_t requests_max = 0;  // admitted and not ended; 0: no cap
  int64_t tokens_max = 0;    // their prompts and texts to be; 0: no cap
  std::string salt;          // of the prefix cache
};

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  int64_t max_tokens = 0;       // 0: up to the context, or what the tenant may have at once
  SamplingParams sampling;
  std::vector<int32_t> stop_ids;  // any of these ends the text, which it is no part of; no event holds it
  int64_t logprobs = -1;          // the most likely tokens beside each one written; -1: no logprobs
  bool echo_logprobs = false;     // of the prompt, too
  int64_t deadline_ms = 0;        // from Submit on; 0: none
  int64_t priority = 0;           // 0 or 1
  Tenant tenant;
};

using StreamId = uint64_t;

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;
};

enum class Finish : uint8_t { kNone, kStop, kLength, kCancelled, kDeadline, kError };

struct Event {
  StreamId stream = 0;
  std::vector<int32_t> tokens;         // new ones
  std::vector<ExpertId> experts;       // of these tokens; of the prompt with the first event
  std::vector<TokenLogprob> logprobs;  // of the prompt first when asked for, without its very first token
  Finish finish = Finish::kNone;
  std::string error;                                                 // with kError
  int64_t prompt_tokens = 0, cached_tokens = 0, written_tokens = 0;  // with a finish
};

struct Rejection {
  // E_CONTEXT: the prompt does not fit the context; E_REQUEST: a bad field; E_BUSY: a cap, or a deadline that cannot be
  // met; E_TENANT: a cap of the tenant; E_DRAINING: no new work.
  base::Error error;
  double retry_after_s = 0;  // with E_BUSY and E_TENANT
};

}  // namespace outrider::serve
