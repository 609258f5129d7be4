#include "sched/admission.h"

#include <algorithm>
#include <cmath>

namespace outrider::sched {
namespace {

bool Over(int64_t used, int64_t cap) { return cap > 0 && used > cap; }

Verdict Judge(const Ask& ask, const Load& load, const AdmissionLimits& limits, double wait_s, double ttft_s) {
  const int64_t tokens = ask.prompt_tokens + ask.max_tokens;
  if (tokens > limits.total.tokens || limits.total.requests < 1) return Verdict::kNeverFits;
  if (Over(tokens, limits.per_key.tokens)) return Verdict::kNeverFits;
  if (load.total.requests + 1 > limits.total.requests) return Verdict::kRequests;
  if (load.total.tokens + tokens > limits.total.tokens) return Verdict::kTokens;
  if (Over(load.key.requests + 1, limits.per_key.requests)) return Verdict::kKeyRequests;
  if (Over(load.key.tokens + tokens, limits.per_key.tokens)) return Verdict::kKeyTokens;
  if (ask.deadline_s > 0 && ttft_s > ask.deadline_s) return Verdict::kDeadline;
  if (ask.wait_max_s > 0 && wait_s > ask.wait_max_s) return Verdict::kDeadline;
  return Verdict::kAdmit;
}

// Until the request's own prompt begins to run.
double PredictedWait(const Load& load) {
  if (load.prefill_tokens_per_s <= 0) return 0;
  return std::max(static_cast<double>(load.prefill_tokens) / load.prefill_tokens_per_s, load.place_wait_s);
}

double PredictedTtft(const Ask& ask, const Load& load) {
  if (load.prefill_tokens_per_s <= 0) return 0;
  const int64_t own = std::max<int64_t>(0, ask.prompt_tokens - ask.cached_tokens);
  return PredictedWait(load) + static_cast<double>(own) / load.prefill_tokens_per_s + load.hold_bound_s;
}

int64_t RetryAfter(const Load& load) {
  if (load.goodput_tokens_per_s <= 0) return 1;
  const double seconds = std::ceil(static_cast<double>(load.backlog_tokens) / load.goodput_tokens_per_s);
  return static_cast<int64_t>(std::clamp(seconds, 1.0, static_cast<double>(kRetryAfterMaxS)));
}

}  // namespace

Admission Admit(const Ask& ask, const Load& load, const AdmissionLimits& limits) {
  Admission admission;
  admission.predicted_ttft_s = PredictedTtft(ask, load);
  admission.verdict = Judge(ask, load, limits, PredictedWait(load), admission.predicted_ttft_s);
  const bool retry = admission.verdict != Verdict::kAdmit && admission.verdict != Verdict::kNeverFits;
  if (retry) admission.retry_after_s = RetryAfter(load);
  return admission;
}

const char* Describe(Verdict verdict) {
  switch (verdict) {
    case Verdict::kAdmit:
      return "admitted";
    case Verdict::kNeverFits:
      return "larger than a cap on tokens";
    case Verdict::kRequests:
      return "cap on requests";
    case Verdict::kTokens:
      return "cap on tokens";
    case Verdict::kKeyRequests:
      return "cap on requests of this key";
    case Verdict::kKeyTokens:
      return "cap on tokens of this key";
    case Verdict::kDeadline:
      return "the deadline cannot be met";
  }
  return "unknown";
}

}  // namespace outrider::sched
