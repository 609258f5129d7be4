#include "serve/admission.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "sched/holding.h"
#include "sched/step_fit.h"

namespace outrider::serve {
namespace {

using base::Fail;

base::Result<void> CheckField(bool good, const char* field, const std::string& found, const char* expected) {
  if (good) return {};
  return Fail("E_REQUEST", std::string(field) + ": found " + found + ", expected " + expected);
}

base::Result<void> CheckSampling(const SamplingParams& s) {
  struct Rule {
    bool good;
    const char* field;
    double found;
    const char* expected;
  };
  const Rule rules[] = {
      {s.temperature >= 0 && s.temperature <= 100, "temperature", s.temperature, "0 to 100"},
      {s.top_k >= 0, "top_k", static_cast<double>(s.top_k), "0 or more"},
      {s.top_p > 0 && s.top_p <= 1, "top_p", s.top_p, "more than 0, at most 1"},
      {std::abs(s.presence_penalty) <= 2, "presence_penalty", s.presence_penalty, "-2 to 2"},
      {std::abs(s.frequency_penalty) <= 2, "frequency_penalty", s.frequency_penalty, "-2 to 2"},
      {s.repetition_penalty > 0 && s.repetition_penalty <= 10, "repetition_penalty", s.repetition_penalty,
       "more than 0, at most 10"},
  };
  for (const Rule& rule : rules) {
    if (auto checked = CheckField(rule.good, rule.field, std::to_string(rule.found), rule.expected); !checked)
      return checked;
  }
  return {};
}

base::Result<void> CheckCounts(const Request& request, const EngineOptions& options) {
  const auto stops = static_cast<int64_t>(request.stop_ids.size());
  struct Rule {
    bool good;
    const char* field;
    int64_t found;
    const char* expected;
  };
  const Rule rules[] = {
      {request.max_tokens >= 0, "max_tokens", request.max_tokens, "0 or more"},
      {request.deadline_ms >= 0, "deadline_ms", request.deadline_ms, "0 or more"},
      {request.tenant.requests_max >= 0, "tenant.requests_max", request.tenant.requests_max, "0 or more"},
      {request.tenant.tokens_max >= 0, "tenant.tokens_max", request.tenant.tokens_max, "0 or more"},
      {request.priority == 0 || request.priority == 1, "priority", request.priority, "0 or 1"},
      {request.logprobs >= -1 && request.logprobs <= options.logprobs_max, "logprobs", request.logprobs,
       "-1 to the engine's maximum"},
      {stops <= options.stop_ids_max, "stop_ids", stops, "no more than the engine's maximum"},
  };
  for (const Rule& rule : rules) {
    if (auto checked = CheckField(rule.good, rule.field, std::to_string(rule.found), rule.expected); !checked)
      return checked;
  }
  return {};
}

base::Result<void> CheckPrompt(const Request& request, const ModelShape& shape) {
  if (request.prompt.empty()) return Fail("E_REQUEST", "prompt: found no token, expected at least one");
  for (const int32_t id : request.prompt) {
    if (id < 0 || id >= shape.vocab)
      return Fail("E_REQUEST",
                  "prompt: found token " + std::to_string(id) + ", expected 0 to " + std::to_string(shape.vocab - 1));
  }
  return {};
}

bool OfTenant(sched::Verdict verdict, int64_t text_max, const sched::AdmissionLimits& limits) {
  if (verdict == sched::Verdict::kNeverFits) return text_max <= limits.total.tokens;
  return verdict == sched::Verdict::kKeyRequests || verdict == sched::Verdict::kKeyTokens;
}

const char* CodeOf(sched::Verdict verdict) {
  switch (verdict) {
    case sched::Verdict::kNeverFits:
      return "E_CONTEXT";
    case sched::Verdict::kKeyRequests:
    case sched::Verdict::kKeyTokens:
      return "E_TENANT";
    default:
      return "E_BUSY";
  }
}

// By when the first token has to be there; 0: at any time. An engine that is idle takes what misses its goal: it will
// not become faster, and learns from it how fast it is.
int64_t FirstTokenMs(const Request& request, bool idle, const EngineOptions& options) {
  const int64_t goal_ms = idle ? 0 : options.ttft_goal_ms;
  if (request.deadline_ms == 0 || goal_ms == 0) return std::max(request.deadline_ms, goal_ms);
  return std::min(request.deadline_ms, goal_ms);
}

// What the policy may hold a prompt for others that share its pass (sched/outrider_policy.h).
double SharingBoundS(const EngineStats& stats, const EngineOptions& options) {
  const double steps_s = static_cast<double>(sched::PromptHoldAge(options.limits)) * stats.step_p95_s;
  return std::min(steps_s, stats.step_fit.setup_s * static_cast<double>(stats.writing));
}

// With a goal of time per token the steps to come are known: no more texts run than a step takes, so prompts are held
// for each other alone, where they have passes of their own, and they get what the goal leaves.
void ForecastBySteps(int64_t waiting, const EngineStats& stats, const EngineOptions& options, sched::Load& load) {
  const double goal_s = static_cast<double>(options.tpot_goal_ms) * 1e-3;
  const sched::StepFit& fit = stats.step_fit;
  const double each_s = sched::PromptSecondsWithin(fit, goal_s, stats.writing, options.limits);
  const double rest_s = fit.Seconds(stats.writing, 0);
  load.prefill_tokens_per_s =
      sched::PromptTokensPerS(fit, goal_s, stats.writing, options.limits) / sched::kForecastFactor;
  load.hold_bound_s = SharingBoundS(stats, options);
  if (fit.setup_s > 0) load.hold_bound_s += fit.setup_s / each_s * (rest_s + each_s);  // until it is saved
  load.place_wait_s =
      sched::kForecastFactor * sched::PlaceWaitS({.running = stats.running,
                                                  .texts_max = stats.texts_max,
                                                  .ahead = stats.queued + waiting,
                                                  .text_tokens = stats.text_tokens,
                                                  .step_s = rest_s + (load.prefill_tokens > 0 ? each_s : 0)});
}

// "0: no cap", as the caps of a tenant are.
std::string CapText(int64_t cap) { return cap > 0 ? std::to_string(cap) : "any"; }

Rejection Refusal(const sched::Admission& admission, const sched::Load& load, const sched::AdmissionLimits& limits,
                  int64_t text_max) {
  const bool tenant = OfTenant(admission.verdict, text_max, limits);
  const sched::Usage& used = tenant ? load.key : load.total;
  const sched::Usage& caps = tenant ? limits.per_key : limits.total;
  std::string message = sched::Describe(admission.verdict);
  message += ": found " + std::to_string(used.requests) + " requests and " + std::to_string(used.tokens) +
             " tokens, asked for " + std::to_string(text_max) + " more, expected at most " + CapText(caps.requests) +
             " and " + CapText(caps.tokens);
  if (admission.verdict == sched::Verdict::kDeadline)
    message += "; the first token would take about " + std::to_string(admission.predicted_ttft_s) + " s";
  return {{CodeOf(admission.verdict), std::move(message)}, static_cast<double>(admission.retry_after_s)};
}

}  // namespace

base::Result<int64_t> TextMax(const Request& request, const ModelShape& shape, const EngineOptions& options) {
  if (auto checked = CheckPrompt(request, shape); !checked) return tl::unexpected(checked.error());
  if (auto checked = CheckCounts(request, options); !checked) return tl::unexpected(checked.error());
  if (auto checked = CheckSampling(request.sampling); !checked) return tl::unexpected(checked.error());
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  if (prompt >= options.text_tokens_max)
    return Fail("E_CONTEXT", "prompt: found " + std::to_string(prompt) + " tokens, expected fewer than the " +
                                 std::to_string(options.text_tokens_max) + " of prompt and text together");
  if (request.max_tokens == 0) {
    const int64_t most = request.tenant.tokens_max > 0 ? request.tenant.tokens_max : options.text_tokens_max;
    return std::clamp(most, prompt + 1, options.text_tokens_max);
  }
  if (request.max_tokens > options.text_tokens_max - prompt)
    return Fail("E_CONTEXT", "prompt and max_tokens: found " + std::to_string(prompt) + " and " +
                                 std::to_string(request.max_tokens) + " tokens, expected at most " +
                                 std::to_string(options.text_tokens_max) + " together");
  return prompt + request.max_tokens;
}

tl::expected<void, Rejection> CheckCaps(const Request& request, int64_t text_max, const Admitted& admitted,
                                        const EngineStats& stats, const EngineOptions& options) {
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  sched::Ask ask;
  ask.prompt_tokens = prompt;
  ask.max_tokens = text_max - prompt;
  ask.deadline_s = static_cast<double>(FirstTokenMs(request, admitted.total.requests == 0, options)) * 1e-3;
  sched::Load load;
  load.total = admitted.total;
  load.key = admitted.tenant;
  load.prefill_tokens = stats.backlog_prompt_tokens + admitted.waiting_prompt_tokens;
  load.backlog_tokens = stats.backlog_tokens + admitted.waiting_tokens;
  load.prefill_tokens_per_s = stats.prefill_tokens_per_s;
  load.goodput_tokens_per_s = stats.goodput_tokens_per_s;
  const int64_t held = sched::PromptHoldSteps(options.limits, prompt, admitted.total.requests);
  load.hold_bound_s = std::max(static_cast<double>(held) * stats.step_p95_s, SharingBoundS(stats, options));
  if (options.tpot_goal_ms > 0 && stats.step_fit.Known()) {
    ForecastBySteps(admitted.waiting, stats, options, load);
    if (admitted.total.requests > 0)
      ask.wait_max_s = sched::kWaitShare * static_cast<double>(options.ttft_goal_ms) * 1e-3;
  }
  sched::AdmissionLimits limits;
  limits.total = {options.running_max + options.queued_max, options.tokens_admitted_max};
  limits.per_key = {request.tenant.requests_max, request.tenant.tokens_max};
  const sched::Admission admission = sched::Admit(ask, load, limits);
  if (admission.verdict == sched::Verdict::kAdmit) return {};
  return tl::unexpected(Refusal(admission, load, limits, text_max));
}

base::Result<EngineOptions> CompleteOptions(EngineOptions options, const ModelShape& shape) {
  const auto refuse = [](const std::string& field, int64_t found, const std::string& expected) {
    return Fail("E_OPTION", field + ": found " + std::to_string(found) + ", expected " + expected);
  };
  if (!options.policy) return Fail("E_OPTION", "policy: found none");
  if (shape.kv_page_tokens < 1 || shape.kv_pages < 1) return refuse("kv_pages", shape.kv_pages, "at least 1");
  if (shape.experts > 16) return refuse("experts", shape.experts, "at most 16");
  if (options.tpot_goal_ms < 0) return refuse("tpot_goal_ms", options.tpot_goal_ms, "0 or more");
  if (options.ttft_goal_ms < 0) return refuse("ttft_goal_ms", options.ttft_goal_ms, "0 or more");
  if (options.ttft_goal_ms == 0 && options.late_first == EngineOptions::LateFirst::kEnd)
    return Fail("E_OPTION", "end_late_first: found no goal to be late for, expected a ttft_goal_ms beside it");
  const int64_t step = options.limits.decode_tokens + options.limits.prefill_tokens;
  if (options.limits.decode_tokens < 1) return refuse("decode_tokens", options.limits.decode_tokens, "at least 1");
  if (options.limits.prefill_tokens < 1) return refuse("prefill_tokens", options.limits.prefill_tokens, "at least 1");
  if (step > shape.step_tokens_max)
    return refuse("decode_tokens and prefill_tokens together", step,
                  "at most " + std::to_string(shape.step_tokens_max));
  const int64_t pages = shape.experts > 0 ? std::min(shape.kv_pages, shape.route_pages) : shape.kv_pages;
  const int64_t held = std::min(shape.context, pages * shape.kv_page_tokens);
  if (options.text_tokens_max == 0) options.text_tokens_max = held;
  if (options.text_tokens_max < 2 || options.text_tokens_max > held)
    return refuse("text_tokens_max", options.text_tokens_max, "2 to " + std::to_string(held));
  if (options.tokens_admitted_max == 0) options.tokens_admitted_max = 4 * shape.kv_pages * shape.kv_page_tokens;
  if (options.tokens_admitted_max < options.text_tokens_max)
    return refuse("tokens_admitted_max", options.tokens_admitted_max,
                  "at least the " + std::to_string(options.text_tokens_max) + " of one request");
  for (const auto& [field, found] :
       {std::pair{"running_max", options.running_max}, std::pair{"queued_max", options.queued_max},
        std::pair{"streams_max", options.streams_max}, std::pair{"buffered_tokens_max", options.buffered_tokens_max},
        std::pair{"echo_rows_max", options.echo_rows_max}}) {
    if (found < 1) return refuse(field, found, "at least 1");
  }
  return options;
}

}  // namespace outrider::serve
