#pragma once
// Whether new work is taken. What cannot be finished in time is refused before anything of it has started.

#include <cstdint>

namespace outrider::sched {

// Requests and tokens (prompt + max_tokens) of admitted work that has not finished.
struct Usage {
  int64_t requests = 0;
  int64_t tokens = 0;
};

struct AdmissionLimits {
  Usage total;    // tokens: what the KV cache and the queue may promise together
  Usage per_key;  // 0: no cap
};

struct Load {
  Usage total;
  Usage key;                        // of the key that asks
  int64_t prefill_tokens = 0;       // of admitted prompts, not yet run
  int64_t backlog_tokens = 0;       // of admitted work, prompts and texts, not yet run
  double prefill_tokens_per_s = 0;  // measured; 0: not yet
  double goodput_tokens_per_s = 0;  // measured, of all tokens; 0: not yet
  double hold_bound_s = 0;          // what holding may add to a first token
  double place_wait_s = 0;          // until the request may run at all; prompts before it run meanwhile
};

struct Ask {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, that need not run
  int64_t max_tokens = 0;
  double deadline_s = 0;  // from now; 0: none
  double wait_max_s = 0;  // before its own prompt begins to run; 0: any
};

enum class Verdict : uint8_t {
  kAdmit,
  kNeverFits,    // larger than a cap by itself: asking again is of no use
  kRequests,     // a cap on requests
  kTokens,       // a cap on tokens
  kKeyRequests,  // likewise, of the key
  kKeyTokens,
  kDeadline,  // the first token would come too late
};

struct Admission {
  Verdict verdict = Verdict::kAdmit;
  double predicted_ttft_s = 0;  // 0 while no rate is measured
  int64_t retry_after_s = 0;    // 1 to 60 where asking again may help, otherwise 0
};

constexpr int64_t kRetryAfterMaxS = 60;

Admission Admit(const Ask& ask, const Load& load, const AdmissionLimits& limits);

// For messages: "cap on tokens".
const char* Describe(Verdict verdict);

}  // namespace outrider::sched
