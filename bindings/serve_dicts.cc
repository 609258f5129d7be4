#include "serve_dicts.h"

#include <pybind11/stl.h>

#include <utility>
#include <vector>

namespace py = pybind11;
namespace serve = outrider::serve;

namespace {

// Messages of libraries may hold anything.
py::object Text(const std::string& text) {
  PyObject* decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
  if (decoded == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(decoded);
}

py::object Name(serve::Finish finish) {
  static constexpr const char* kNames[] = {"", "stop", "length", "cancelled", "deadline", "error"};
  if (finish == serve::Finish::kNone) return py::none();
  return py::str(kNames[static_cast<size_t>(finish)]);
}

py::dict Counts(const serve::EngineStats& stats) {
  const std::pair<const char*, int64_t> counts[] = {
      {"submitted", stats.submitted},
      {"slow_readers", stats.slow_readers},
      {"late_first", stats.late_first},
      {"queued", stats.queued},
      {"running", stats.running},
      {"writing", stats.writing},
      {"texts_max", stats.texts_max},
      {"open_streams", stats.open_streams},
      {"tokens_admitted", stats.tokens_admitted},
      {"backlog_prompt_tokens", stats.backlog_prompt_tokens},
      {"backlog_tokens", stats.backlog_tokens},
      {"kv_pages", stats.kv_pages},
      {"kv_pages_used", stats.kv_pages_used},
      {"kv_pages_cached", stats.kv_pages_cached},
      {"route_pages", stats.route_pages},
      {"route_pages_used", stats.route_pages_used},
      {"steps", stats.steps},
      {"prompt_steps", stats.prompt_steps},
      {"failed_steps", stats.failed_steps},
      {"prefill_tokens", stats.prefill_tokens},
      {"decode_tokens", stats.decode_tokens},
      {"written_tokens", stats.written_tokens},
      {"prefix_hit_tokens", stats.prefix_hit_tokens},
      {"plan_hit_tokens", stats.plan_hit_tokens},
      {"routed_tokens", stats.routed_tokens},
      {"held_items", stats.held_items},
      {"hold_steps_max", stats.hold_steps_max},
      {"hold_age_max", stats.hold_age_max},
      {"distinct_experts", stats.distinct_experts},
      {"preemptions", stats.preemptions},
      {"dropped_plans", stats.dropped_plans},
      {"weight_bytes", stats.weight_bytes},
      {"ffn_bytes", stats.ffn_bytes},
      {"unplanned_tokens", stats.unplanned_tokens},
      {"plan_mismatches", stats.plan_mismatches},
      {"plan_checked", stats.plan_checked},
      {"invariant_violations", stats.invariant_violations},
  };
  py::dict out;
  for (const auto& [name, value] : counts) out[name] = value;
  return out;
}

}  // namespace

py::dict ToDict(const serve::Event& event) {
  py::dict out;
  out["stream"] = event.stream;
  out["tokens"] = event.tokens;
  out["experts"] = std::vector<int>(event.experts.begin(), event.experts.end());
  py::list logprobs;
  for (const serve::TokenLogprob& row : event.logprobs)
    logprobs.append(py::make_tuple(row.token, row.logprob, py::cast(row.top)));
  out["logprobs"] = logprobs;
  out["finish"] = Name(event.finish);
  out["error"] = Text(event.error);
  out["prompt_tokens"] = event.prompt_tokens;
  out["cached_tokens"] = event.cached_tokens;
  out["written_tokens"] = event.written_tokens;
  return out;
}

py::dict ToDict(const serve::EngineStats& stats) {
  const std::pair<const char*, double> measured[] = {
      {"executor_s", stats.executor_s},
      {"prompt_pass_s", stats.prompt_pass_s},
      {"router_s", stats.router_s},
      {"policy_s", stats.policy_s},
      {"host_s", stats.host_s},
      {"since_step_s", stats.since_step_s},
      {"bytes_per_s", stats.bytes_per_s},
      {"token_s", stats.token_s},
      {"step_p95_s", stats.step_p95_s},
      {"fit_step_s", stats.step_fit.step_s},
      {"fit_text_s", stats.step_fit.text_s},
      {"fit_prompt_token_s", stats.step_fit.prompt_token_s},
      {"fit_prompt_pass_s", stats.step_fit.setup_s},
      {"text_tokens", stats.text_tokens},
      {"prefill_tokens_per_s", stats.prefill_tokens_per_s},
      {"goodput_tokens_per_s", stats.goodput_tokens_per_s},
  };
  py::dict out = Counts(stats), ended, steps, experts;
  for (const auto& [name, value] : measured) out[name] = value;
  ended["stop"] = stats.stopped;
  ended["length"] = stats.length;
  ended["cancelled"] = stats.cancelled;
  ended["deadline"] = stats.deadline;
  ended["error"] = stats.failed;
  out["ended"] = ended;
  steps["bounds"] = serve::StepSecondsHistogram::kBounds;
  steps["counts"] = stats.step_seconds.counts;
  steps["sum"] = stats.step_seconds.sum_s;
  out["step_seconds"] = steps;
  for (size_t expert = 0; expert < stats.expert_tokens.size(); ++expert)
    experts[py::int_(expert)] = stats.expert_tokens[expert];
  out["expert_tokens"] = experts;
  out["rejected"] = stats.rejected;
  out["degraded"] = stats.degraded;
  out["draining"] = stats.draining;
  out["device_error"] = Text(stats.device_error);
  out["first_violation"] = stats.first_violation;
  return out;
}
