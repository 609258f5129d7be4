#include "serve_simulate.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "sched/policies.h"
#include "sched/simulate.h"

namespace py = pybind11;
namespace sched = outrider::sched;

namespace {

using Experts = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;

template <class Value>
using Fields = std::map<std::string, Value*>;

template <class Value>
void Fill(const Fields<Value>& fields, const std::map<std::string, Value>& given, const std::string& what) {
  for (const auto& [name, value] : given) {
    const auto field = fields.find(name);
    if (field == fields.end()) throw py::value_error("simulate_serving: unknown " + what + " " + name);
    *field->second = value;
  }
}

sched::StepLimits Limits(const std::map<std::string, int64_t>& given) {
  sched::StepLimits limits;
  Fill<int64_t>({{"decode_tokens", &limits.decode_tokens},
                 {"prefill_tokens", &limits.prefill_tokens},
                 {"distinct_experts", &limits.distinct_experts},
                 {"age_max", &limits.age_max},
                 {"prefill_age_max", &limits.prefill_age_max},
                 {"prompt_hold_max", &limits.prompt_hold_max},
                 {"ffn_bytes_max", &limits.ffn_bytes_max}},
                given, "limit");
  return limits;
}

sched::Machine Machine(const std::map<std::string, double>& given) {
  sched::Machine machine;
  Fill<double>({{"bytes_per_s", &machine.bytes_per_s},
                {"token_s", &machine.token_s},
                {"step_s", &machine.step_s},
                {"text_s", &machine.text_s},
                {"context_token_s", &machine.context_token_s},
                {"prompt_pass_s", &machine.prompt_pass_s}},
               given, "number of the machine");
  return machine;
}

bool HasPrompts(const sched::SimulatedStep& step) {
  return std::ranges::any_of(step.plan.slices, [](const sched::Slice& s) { return s.lane == sched::Lane::kPrefill; });
}

py::dict ToDict(const sched::Simulation& run) {
  py::dict out;
  std::vector<double> ttft, latency;
  int64_t passed_over = 0;
  for (const sched::RequestTimes& times : run.requests) {
    ttft.push_back(times.ttft_s);
    latency.push_back(times.latency_s);
    passed_over = std::max(passed_over, times.passed_over_max);
  }
  out["ttft_s"] = ttft;
  out["latency_s"] = latency;
  out["passed_over_max"] = passed_over;
  out["seconds"] = run.seconds;
  out["steps"] = run.steps.size();
  out["steps_without_prompts"] = run.steps.size() - static_cast<size_t>(std::ranges::count_if(run.steps, HasPrompts));
  out["tokens"] = run.tokens;
  out["weight_bytes"] = run.weight_bytes;
  out["distinct_experts_per_step"] = run.DistinctExperts();
  return out;
}

py::dict SimulateServing(const std::vector<std::tuple<double, int64_t, int64_t, Experts>>& rows, int64_t experts,
                         const std::vector<int64_t>& ffn_bytes, int64_t fixed_bytes,
                         const std::map<std::string, double>& seconds, int64_t requests_max, const std::string& policy,
                         const std::map<std::string, int64_t>& limits) {
  const sched::Policy chosen = sched::FindPolicy(policy);
  if (chosen == nullptr) throw py::value_error("simulate_serving: unknown policy " + policy);
  std::vector<sched::Arrival> arrivals;
  for (const auto& [time_s, prompt, output, ids] : rows) {
    if (ids.size() < (experts > 0 ? prompt + output : 0))
      throw py::value_error("simulate_serving: fewer experts than tokens");
    arrivals.push_back({.time_s = time_s,
                        .prompt_tokens = prompt,
                        .output_tokens = output,
                        .experts = {ids.data(), static_cast<size_t>(ids.size())}});
  }
  sched::Machine machine = Machine(seconds);
  machine.experts = experts;
  machine.ffn_bytes = ffn_bytes;
  machine.fixed_bytes = fixed_bytes;
  machine.requests_max = requests_max;
  try {
    return ToDict(sched::Simulate(arrivals, machine, Limits(limits), chosen));
  } catch (const outrider::base::CheckError& error) {
    throw py::value_error(std::string("simulate_serving: ") + error.what());
  }
}

}  // namespace

void DefineSimulate(py::module_& m) {
  m.def("simulate_serving", &SimulateServing, py::arg("rows"), py::arg("experts"), py::arg("ffn_bytes"),
        py::arg("fixed_bytes"), py::arg("machine"), py::arg("requests_max"), py::arg("policy"), py::arg("limits"),
        "A replay on a virtual clock. rows: (arrival_s, prompt tokens, output tokens, experts); machine: bytes_per_s, "
        "token_s, step_s, text_s, context_token_s and prompt_pass_s as in src/sched/simulate.h.");
}
