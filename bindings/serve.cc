#include "serve.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "result.h"
#include "sched/policies.h"
#include "serve/engine.h"
#include "serve_dicts.h"
#include "serve_model.h"

namespace py = pybind11;
namespace base = outrider::base;
namespace sched = outrider::sched;
namespace serve = outrider::serve;

namespace {

PyObject* rejected_type = nullptr;  // outrider._core.ServeRejected, made at import, never released

[[noreturn]] void Raise(const serve::Rejection& rejection) {
  const py::handle type(rejected_type);
  const py::object error = type("error " + rejection.error.code + ": " + rejection.error.message);
  error.attr("code") = rejection.error.code;
  error.attr("retry_after_s") = rejection.retry_after_s;
  PyErr_SetObject(rejected_type, error.ptr());
  throw py::error_already_set();
}

// What the keywords of the constructor set.
struct Settings {
  int64_t kv_tokens = 0;     // that the backbone's cache holds; 0: as ServingOptions says
  int64_t route_tokens = 0;  // likewise the router's; 0: twice as many
  int64_t kv_memory_percent = 90;
  int64_t prefix_cache = 1, self_check = 0, end_late_first = 0;
  serve::EngineOptions options;

  // Every keyword, in the order of `info`.
  std::vector<std::pair<const char*, int64_t*>> Fields() {
    sched::StepLimits& limits = options.limits;
    return {{"kv_tokens", &kv_tokens},
            {"route_tokens", &route_tokens},
            {"kv_memory_percent", &kv_memory_percent},
            {"decode_tokens", &limits.decode_tokens},
            {"prefill_tokens", &limits.prefill_tokens},
            {"distinct_experts", &limits.distinct_experts},
            {"age_max", &limits.age_max},
            {"tpot_goal_ms", &options.tpot_goal_ms},
            {"ttft_goal_ms", &options.ttft_goal_ms},
            {"end_late_first", &end_late_first},
            {"prefill_age_max", &limits.prefill_age_max},
            {"prompt_hold_max", &limits.prompt_hold_max},
            {"ffn_bytes_max", &limits.ffn_bytes_max},
            {"running_max", &options.running_max},
            {"queued_max", &options.queued_max},
            {"streams_max", &options.streams_max},
            {"tokens_admitted_max", &options.tokens_admitted_max},
            {"text_tokens_max", &options.text_tokens_max},
            {"buffered_tokens_max", &options.buffered_tokens_max},
            {"echo_rows_max", &options.echo_rows_max},
            {"priority_age_steps", &options.priority_age_steps},
            {"logprobs_max", &options.logprobs_max},
            {"stop_ids_max", &options.stop_ids_max},
            {"prefix_cache", &prefix_cache},
            {"self_check", &self_check}};
  }
};

std::vector<std::string> OptionNames() {
  Settings settings;
  std::vector<std::string> names;
  for (const auto& [name, value] : settings.Fields()) names.emplace_back(name);
  std::ranges::sort(names);
  return names;
}

Settings Parse(const py::kwargs& keywords) {
  Settings settings;
  const auto fields = settings.Fields();
  for (const auto& [key, value] : keywords) {
    const auto name = py::cast<std::string>(key);
    const auto field = std::find_if(fields.begin(), fields.end(), [&name](const auto& f) { return name == f.first; });
    if (field == fields.end()) throw py::type_error("ServeEngine: unknown keyword " + name);
    try {
      *field->second = py::cast<int64_t>(value);
    } catch (const py::cast_error&) {
      throw py::type_error("ServeEngine: " + name + " is no whole number of 64 bits");
    }
  }
  using Options = serve::EngineOptions;
  settings.options.prefix_cache = settings.prefix_cache != 0 ? Options::PrefixCache::kOn : Options::PrefixCache::kOff;
  settings.options.self_check = settings.self_check != 0 ? Options::SelfCheck::kOn : Options::SelfCheck::kOff;
  settings.options.late_first = settings.end_late_first != 0 ? Options::LateFirst::kEnd : Options::LateFirst::kServe;
  return settings;
}

constexpr int64_t kPageTokens = 16;  // sizes are told in tokens; the machine's pages hold so many

struct Names {
  std::string folder, parent, device, weight_format, policy;
  int threads = 0;
  std::string layer_router;
};

// Empty: what the device takes best.
constexpr std::pair<std::string_view, std::string_view> kFormats[] = {
    {"float32", "f32"}, {"bfloat16", "bf16"}, {"int8", "int8"}, {"", ""}};

ServingOptions Opening(const Names& names, const Settings& settings) {
  const auto format =
      std::ranges::find_if(kFormats, [&](const auto& known) { return known.first == names.weight_format; });
  if (format == std::end(kFormats))
    throw py::value_error("error E_OPTION: weight_format: found " + names.weight_format +
                          ", expected float32, bfloat16 or int8");
  const sched::StepLimits& limits = settings.options.limits;
  ServingOptions opening;
  opening.folder = names.folder;
  opening.parent = names.parent;
  opening.device = names.device;
  opening.layer_router = names.layer_router;
  opening.format = format->second;
  const auto cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const int free_cores = names.device == "cuda" ? std::max(1, cores - 1) : cores;  // but one, which feeds the device
  opening.threads = names.threads > 0 ? names.threads : free_cores;
  opening.limits.kv_pages = (settings.kv_tokens + kPageTokens - 1) / kPageTokens;
  opening.limits.route_pages = (settings.route_tokens + kPageTokens - 1) / kPageTokens;
  opening.limits.step_tokens_max = limits.decode_tokens + limits.prefill_tokens;
  opening.kv_memory_percent = settings.kv_memory_percent;
  opening.texts_max = settings.options.running_max;
  return opening;
}

serve::Policy PolicyNamed(const std::string& name) {
  if (const sched::Policy policy = sched::FindPolicy(name)) return policy;
  std::string known;
  for (const sched::NamedPolicy& policy : sched::Policies())
    known += (known.empty() ? "" : ", ") + std::string(policy.name);
  throw py::value_error("error E_OPTION: policy: found " + name + ", expected one of " + known);
}

base::Deadline AfterSeconds(double seconds) {
  return base::Deadline::AfterMs(static_cast<int64_t>(std::clamp(seconds, 0.0, 1e6) * 1e3));
}

// A model that several engines serve; see LoadForServing.
struct ServeModel {
  std::string device;
  std::shared_ptr<LoadedModel> loaded;
};

class ServeEngine {
 public:
  // `model` empty: what `names` says is read.
  ServeEngine(Names names, Settings settings, const std::shared_ptr<LoadedModel>& model)
      : names_(std::move(names)), settings_(std::move(settings)) {
    settings_.options.policy = PolicyNamed(names_.policy);
    // So that nothing waits for what the others never do: admission reckons with it.
    if (names_.policy != "outrider") settings_.options.limits.prompt_hold_max = 0;
    const ServingOptions opening = Opening(names_, settings_);
    // What an engine before this one held is free for its pages.
    if (names_.device == "cuda") py::module_::import("torch.cuda").attr("empty_cache")();
    const py::gil_scoped_release unlocked;
    ServedModel served = Unwrap(model ? Serve(*model, opening) : OpenForServing(opening));
    const auto all = static_cast<uint16_t>((1U << served.executor->shape().experts) - 1);
    weight_bytes_ = served.executor->FixedBytes() + served.executor->FfnBytes(all);
    tau_ = served.tau;
    end_ids_ = served.config.end_ids;
    names_.threads = opening.threads;
    names_.device = served.device;
    for (const auto& [name, of] : kFormats)
      if (of == served.format) names_.weight_format = name;
    settings_.kv_tokens = served.executor->shape().kv_pages * kPageTokens;
    settings_.route_tokens = served.executor->shape().route_pages * kPageTokens;
    settings_.options.for_each = [workers = served.workers](int64_t count, const auto& body) {
      workers->Run(count, [&body](int64_t i, int) { body(i); });
    };
    engine_ = Unwrap(serve::Engine::Make(std::move(served.executor), std::move(served.pregate), settings_.options));
    settings_.options = engine_->options();
  }

  py::dict Info() {
    const serve::ModelShape& shape = engine_->shape();
    py::dict out;
    out["vocab"] = shape.vocab;
    out["context"] = settings_.options.text_tokens_max;
    out["model_context"] = shape.context;
    out["experts"] = shape.experts;
    out["tau"] = tau_;
    out["policy"] = names_.policy;
    out["device"] = names_.device;
    out["weight_format"] = names_.weight_format;
    out["weight_bytes"] = weight_bytes_;
    out["threads"] = names_.threads;
    out["end_ids"] = end_ids_;
    out["kv_pages"] = shape.kv_pages;
    out["route_pages"] = shape.route_pages;
    out["kv_page_tokens"] = shape.kv_page_tokens;
    for (const auto& [name, value] : settings_.Fields()) out[name] = *value;
    return out;
  }

  serve::StreamId Submit(serve::Request request) {
    auto id = [&] {
      const py::gil_scoped_release unlocked;
      return engine_->Submit(std::move(request));
    }();
    if (!id) Raise(id.error());
    return *id;
  }

  py::list Poll(int64_t limit) {
    const auto events = [&] {
      const py::gil_scoped_release unlocked;
      return engine_->Poll(limit);
    }();
    py::list out;
    for (const serve::Event& event : events) out.append(ToDict(event));
    return out;
  }

  py::dict Stats() {
    const serve::EngineStats stats = [&] {
      const py::gil_scoped_release unlocked;
      return engine_->Stats();
    }();
    py::dict out = ToDict(stats);
    out["ttft_goal_s"] = static_cast<double>(settings_.options.ttft_goal_ms) * 1e-3;
    out["tpot_goal_s"] = static_cast<double>(settings_.options.tpot_goal_ms) * 1e-3;
    return out;
  }

  int EventFd() const { return engine_->event_fd(); }
  void Cancel(serve::StreamId stream) { engine_->Cancel(stream); }
  void BeginDrain() { engine_->BeginDrain(); }
  bool WaitIdle(double timeout_s) { return engine_->WaitIdle(AfterSeconds(timeout_s)); }
  void Close() { engine_->Close(); }

 private:
  std::unique_ptr<serve::Engine> engine_;
  Names names_;
  Settings settings_;
  int64_t weight_bytes_ = 0;
  double tau_ = 0;
  std::vector<int64_t> end_ids_;
};

serve::StreamId Submit(ServeEngine& self, std::vector<int32_t> prompt, int64_t max_tokens, double temperature,
                       int64_t top_k, double top_p, double presence_penalty, double frequency_penalty,
                       double repetition_penalty, uint64_t seed, std::vector<int32_t> stop_ids, int64_t logprobs,
                       bool echo_logprobs, int64_t deadline_ms, int64_t priority, std::string tenant,
                       int64_t tenant_requests_max, int64_t tenant_tokens_max, std::string salt) {
  serve::Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling = {temperature, top_k, top_p, presence_penalty, frequency_penalty, repetition_penalty, seed};
  request.stop_ids = std::move(stop_ids);
  request.logprobs = logprobs;
  request.echo_logprobs = echo_logprobs;
  request.deadline_ms = deadline_ms;
  request.priority = priority;
  request.tenant = {std::move(tenant), tenant_requests_max, tenant_tokens_max, std::move(salt)};
  return self.Submit(std::move(request));
}

std::unique_ptr<ServeEngine> Open(const std::string& folder, const std::string& parent, const std::string& device,
                                  const std::string& weight_format, int threads, const std::string& policy,
                                  const std::string& layer_router, const py::kwargs& options) {
  return std::make_unique<ServeEngine>(Names{folder, parent, device, weight_format, policy, threads, layer_router},
                                       Parse(options), nullptr);
}

std::unique_ptr<ServeEngine> OpenLoaded(const ServeModel& model, int threads, const std::string& policy,
                                        const py::kwargs& options) {
  return std::make_unique<ServeEngine>(Names{"", "", model.device, "", policy, threads, ""}, Parse(options),
                                       model.loaded);
}

ServeModel Load(const std::string& folder, const std::string& parent, const std::string& device,
                const std::string& weight_format, const std::string& layer_router) {
  const py::gil_scoped_release unlocked;
  const Names names{folder, parent, device, weight_format, "", 1, layer_router};
  return {device, Unwrap(LoadForServing(Opening(names, {})))};
}

}  // namespace

void DefineServe(py::module_& m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("serve_option_names", &OptionNames, "Further keywords of ServeEngine, sorted.");
  rejected_type = PyErr_NewException("outrider._core.ServeRejected", nullptr, nullptr);
  m.add_object("ServeRejected", py::reinterpret_borrow<py::object>(rejected_type));
  py::class_<ServeModel>(m, "ServeModel",
                         "A model read once, for several engines; on a device they share its weights. Raises as "
                         "ServeEngine does.")
      .def(py::init(&Load), py::arg("folder"), py::arg("parent") = "", py::arg("device") = "cpu",
           py::arg("weight_format") = "", py::arg("layer_router") = "");
  py::class_<ServeEngine>(
      m, "ServeEngine",
      "Serves a dense model folder, or a refactored one (parent: the model it was made of, when its "
      "weights are not in the folder) on a device, cpu or cuda. Further keywords: sizes and caps by the names that "
      "`info` shows. Raises ValueError(\"error CODE: message\").")
      .def(py::init(&Open), py::arg("folder"), py::arg("parent") = "", py::arg("device") = "cpu",
           py::arg("weight_format") = "", py::arg("threads") = 0, py::arg("policy") = "outrider",
           py::arg("layer_router") = "")
      .def(py::init(&OpenLoaded), py::arg("model"), py::arg("threads") = 0, py::arg("policy") = "outrider")
      .def_property_readonly("info", &ServeEngine::Info)
      .def_property_readonly("event_fd", &ServeEngine::EventFd, "Readable while events wait. Owned by the engine.")
      .def("submit", &Submit, py::arg("prompt"), py::kw_only(), py::arg("max_tokens") = 0, py::arg("temperature") = 0.0,
           py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("presence_penalty") = 0.0,
           py::arg("frequency_penalty") = 0.0, py::arg("repetition_penalty") = 1.0, py::arg("seed") = 0,
           py::arg("stop_ids") = std::vector<int32_t>(), py::arg("logprobs") = -1, py::arg("echo_logprobs") = false,
           py::arg("deadline_ms") = 0, py::arg("priority") = 0, py::arg("tenant") = "",
           py::arg("tenant_requests_max") = 0, py::arg("tenant_tokens_max") = 0, py::arg("salt") = "",
           "-> stream. Raises ServeRejected with code (E_CONTEXT, E_REQUEST, E_BUSY, E_TENANT, E_DRAINING) and "
           "retry_after_s.")
      .def("cancel", &ServeEngine::Cancel, py::arg("stream"), Unlocked(), "Ends a stream within one step.")
      .def("poll", &ServeEngine::Poll, py::arg("limit") = 256, "Events that wait, of `limit` streams at most.")
      .def("stats", &ServeEngine::Stats)
      .def("drain", &ServeEngine::BeginDrain, Unlocked(), "From now on submit refuses; what is admitted goes on.")
      .def("wait_idle", &ServeEngine::WaitIdle, py::arg("timeout_s"), Unlocked(), "False: requests are left.")
      .def("close", &ServeEngine::Close, Unlocked(), "Cancels what is left and stops the thread; may be called twice.");
}
