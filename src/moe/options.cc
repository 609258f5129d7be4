#include "moe/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <set>
#include <type_traits>
#include <vector>

#include <nlohmann/json.hpp>

#include "files/shallow_json.h"

namespace outrider::moe {
namespace {

using nlohmann::json;

// Calls visit(name, member, changes_result) for every field.
template <class AnyOptions, class Visit>
void ForEachField(AnyOptions& o, const Visit& visit) {
  visit("model", o.model, true);
  visit("data", o.data, true);
  visit("out", o.out, false);
  visit("teacher", o.teacher, true);
  visit("device", o.device, true);
  visit("dtype", o.dtype, true);
  visit("seed", o.seed, true);
  visit("experts.kind", o.experts_kind, true);
  visit("experts.statistic", o.experts_statistic, true);
  visit("experts.count", o.experts_count, true);
  visit("experts.keep", o.experts_keep, true);
  visit("experts.ratio", o.experts_ratio, true);
  visit("calibration.samples", o.calibration_samples, true);
  visit("calibration.tokens", o.calibration_tokens, true);
  visit("coverage.rounds", o.coverage_rounds, true);
  visit("coverage.sink", o.coverage_sink, true);
  visit("coverage.granularity", o.coverage_granularity, true);
  visit("coverage.mass", o.coverage_mass, true);
  visit("carved.top", o.carved_top, true);
  visit("routing.kind", o.routing_kind, true);
  visit("routing.tau", o.routing_tau, true);
  visit("router.width", o.router_width, true);
  visit("router.heads", o.router_heads, true);
  visit("router.scale", o.router_scale, true);
  visit("router.embed", o.router_embedding, true);
  visit("router.loss", o.router_loss, true);
  visit("router.attn", o.router_attention, true);
  visit("router.joint", o.router_joint, true);
  visit("router.balance", o.router_balance, true);
  visit("router.stay", o.router_stay, true);
  visit("rounds", o.rounds, true);
  visit("router.steps", o.router_steps, true);
  visit("router.last_steps", o.router_last_steps, true);
  visit("expert.steps", o.expert_steps, true);
  visit("batch", o.batch, true);
  visit("sequence", o.sequence, true);
  visit("micro_batch", o.micro_batch, true);
  visit("chunk", o.chunk, true);
  visit("router.rate", o.router_rate, true);
  visit("expert.rate", o.expert_rate, true);
  visit("round_decay", o.round_decay, true);
  visit("weight_decay", o.weight_decay, true);
  visit("clip_norm", o.clip_norm, true);
  visit("distill", o.distill, true);
  visit("tune", o.tune, true);
  visit("adapter.dtype", o.adapter_dtype, false);
  visit("adapter.parts", o.adapter_parts, true);
  visit("deterministic", o.deterministic, true);
  visit("checkpoint_steps", o.checkpoint_steps, false);
  visit("seconds_max", o.seconds_max, false);
  visit("steps_max", o.steps_max, false);
  visit("eval_tokens", o.eval_tokens, false);
  visit("eval_taus", o.eval_taus, false);
  visit("trace_tokens", o.trace_tokens, false);
  visit("write_model", o.write_model, false);
  visit("coexec", o.coexec, false);
}

template <class T>
bool Fits(const json& value) {
  if constexpr (std::is_same_v<T, bool>) return value.is_boolean();
  if constexpr (std::is_same_v<T, std::string>) return value.is_string();
  if constexpr (std::is_same_v<T, int64_t>) return value.is_number_integer();
  return value.is_number();
}

template <class T>
const char* NameOfType() {
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  if constexpr (std::is_same_v<T, std::string>) return "a string";
  if constexpr (std::is_same_v<T, int64_t>) return "an integer";
  return "a number";
}

std::string OneOf(const char* name, const std::string& value, const std::vector<std::string>& allowed) {
  if (std::ranges::find(allowed, value) != allowed.end()) return "";
  std::string text = std::string(name) + ": found \"" + value + "\", expected one of";
  for (const std::string& a : allowed) text += " " + a;
  return text;
}

std::string AtLeast(const char* name, double value, double least) {
  if (value >= least) return "";
  return std::string(name) + ": found " + json(value).dump() + ", expected at least " + json(least).dump();
}

// N of "<name>:N", at least 1; -1 for any other text.
int64_t CountBehind(std::string_view name, std::string_view text) {
  if (!text.starts_with(name) || !text.substr(name.size()).starts_with(":")) return -1;
  const std::string_view digits = text.substr(name.size() + 1);
  int64_t count = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
  return error == std::errc() && end == digits.data() + digits.size() && count >= 1 ? count : -1;
}

// -1 for a text that is no granularity.
int64_t ParseGranularity(const std::string& text) {
  if (text == "token") return 1;
  return text == "document" ? 0 : CountBehind("window", text);
}

// -1 for a text that names no way of tuning.
int64_t ParseTune(const std::string& text) { return text == "full" ? 0 : CountBehind("adapter", text); }

// Numbers of at least 0 with commas between them; nullopt for anything else.
std::optional<std::vector<double>> ParseNumbers(const std::string& text) {
  std::vector<double> numbers;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    double value = 0;
    const auto [stop, error] = std::from_chars(text.data() + begin, text.data() + end, value);
    if (error != std::errc() || stop != text.data() + end || !(value >= 0) || !std::isfinite(value)) return {};
    numbers.push_back(value);
    if (end + 1 == text.size()) return {};
    begin = end + 1;
  }
  return numbers;
}

// What is wrong with kinds of experts and of routing that do not go together.
std::vector<std::string> WrongPairs(const Options& o) {
  std::vector<std::string> found;
  const bool one = o.experts_kind == "static" || o.experts_kind == "contextual" || o.experts_kind == "dense";
  const bool carved = o.experts_kind == "carved";
  if (one && o.routing_kind != "none")
    found.push_back("routing.kind: experts.kind " + o.experts_kind + " has no router, expected none");
  if (carved && o.routing_kind != "layerwise")
    found.emplace_back("routing.kind: experts.kind carved has a router per layer, expected layerwise");
  if (!one && o.routing_kind == "none")
    found.push_back("routing.kind: experts.kind " + o.experts_kind + " needs one of router, layerwise, random, domain");
  if (!one && (o.experts_statistic.starts_with("best") || o.experts_statistic == "coverage"))
    found.push_back("experts.statistic: " + o.experts_statistic + " is for experts.kind static only");
  if (o.routing_kind == "layerwise" && o.routing_tau > 0)
    found.emplace_back("routing.tau: routing.kind layerwise has no hysteresis, expected 0");
  if (o.experts_ratio != "uniform" && o.experts_kind != "coverage" && o.experts_kind != "static")
    found.push_back("experts.ratio: " + o.experts_ratio + " is for experts.kind coverage and static only");
  if (o.router_joint != "off" && o.routing_kind != "router")
    found.push_back("router.joint: routing.kind " + o.routing_kind +
                    " has no router to tune with the experts, expected off");
  if (o.router_joint != "off" && o.router_loss != "coverage")
    found.push_back("router.joint: router.loss " + o.router_loss + " has a stage of its own only, expected off");
  if (carved && o.carved_top >= o.experts_count) found.emplace_back("carved.top: expected fewer than experts.count");
  return found;
}

// The first thing wrong with the values, empty if none.
std::string Complaint(const Options& o) {
  std::vector<std::string> found = {
      OneOf("dtype", o.dtype, {"float32", "bfloat16"}),
      OneOf("adapter.dtype", o.adapter_dtype, {"bfloat16", "int8"}),
      OneOf("adapter.parts", o.adapter_parts, {"all", "ffn"}),
      OneOf("experts.kind", o.experts_kind,
            {"coverage", "published", "random", "carved", "static", "contextual", "dense"}),
      OneOf("experts.statistic", o.experts_statistic,
            {"l1", "l1_out", "fluctuation", "coverage", "best", "best_of_three"}),
      OneOf("experts.ratio", o.experts_ratio, {"uniform", "measured", "global"}),
      OneOf("routing.kind", o.routing_kind, {"router", "layerwise", "random", "domain", "none"}),
      OneOf("coverage.mass", o.coverage_mass, {"activation", "gradient"}),
      OneOf("router.scale", o.router_scale, {"none", "sqrt"}),
      OneOf("router.embed", o.router_embedding, {"own", "tied"}),
      OneOf("router.loss", o.router_loss, {"coverage", "paper", "code", "code_abs"}),
      OneOf("router.joint", o.router_joint, {"off", "coverage"}),
      AtLeast("calibration.samples", static_cast<double>(o.calibration_samples), 1),
      AtLeast("calibration.tokens", static_cast<double>(o.calibration_tokens), 2),
      AtLeast("experts.count", static_cast<double>(o.experts_count), 1),
      AtLeast("carved.top", static_cast<double>(o.carved_top), 1),
      AtLeast("trace_tokens", static_cast<double>(o.trace_tokens), 0),
      AtLeast("coverage.rounds", static_cast<double>(o.coverage_rounds), 1),
      AtLeast("router.width", static_cast<double>(o.router_width), 1),
      AtLeast("router.heads", static_cast<double>(o.router_heads), 1),
      AtLeast("rounds", static_cast<double>(o.rounds), 0),
      AtLeast("router.steps", static_cast<double>(o.router_steps), 0),
      AtLeast("router.last_steps", static_cast<double>(o.router_last_steps), 0),
      AtLeast("expert.steps", static_cast<double>(o.expert_steps), 0),
      AtLeast("batch", static_cast<double>(o.batch), 1),
      AtLeast("sequence", static_cast<double>(o.sequence), 1),
      AtLeast("micro_batch", static_cast<double>(o.micro_batch), 1),
      AtLeast("chunk", static_cast<double>(o.chunk), 1),
      AtLeast("checkpoint_steps", static_cast<double>(o.checkpoint_steps), 1),
      AtLeast("router.balance", o.router_balance, 0),
      AtLeast("router.stay", o.router_stay, 0),
      AtLeast("coverage.sink", o.coverage_sink, 0),
      AtLeast("distill", o.distill, 0),
      AtLeast("routing.tau", o.routing_tau, 0),
  };
  if (o.experts_count > 16)
    found.push_back("experts.count: found " + std::to_string(o.experts_count) + ", expected at most 16");
  if (!(o.experts_keep > 0 && o.experts_keep <= 1))
    found.emplace_back("experts.keep: expected a share above 0, up to 1");
  if (ParseGranularity(o.coverage_granularity) < 0) {
    found.push_back("coverage.granularity: found \"" + o.coverage_granularity +
                    "\", expected token, window:W or document");
  }
  if (ParseTune(o.tune) < 0) found.push_back("tune: found \"" + o.tune + "\", expected full or adapter:R");
  if (!ParseNumbers(o.eval_taus))
    found.push_back("eval_taus: found \"" + o.eval_taus + "\", expected numbers of at least 0, comma between them");
  for (std::string& text : WrongPairs(o)) found.push_back(std::move(text));
  if (o.distill > 0 && o.teacher.empty())
    found.emplace_back("teacher: expected a model folder or parent, as distill is above 0");
  const auto bad = std::ranges::find_if(found, [](const std::string& text) { return !text.empty(); });
  return bad == found.end() ? "" : *bad;
}

base::Result<Options> Preset(const json& root) {
  Options options;
  const json name = root.contains("preset") ? root["preset"] : json("outrider");
  if (name == "outrider") return options;
  if (name != "readme") return base::Fail("E_OPTION", "preset: found " + name.dump() + ", expected outrider or readme");
  options.experts_kind = "published";
  options.calibration_samples = 16;
  options.calibration_tokens = 4096;
  options.router_width = 512;
  options.router_scale = "none";
  options.router_embedding = "own";
  options.router_loss = "code";
  options.rounds = 8;
  options.router_steps = 100;
  options.expert_steps = 200;
  options.expert_rate = 5e-5;
  return options;
}

}  // namespace

base::Result<Options> ParseOptions(std::string_view text) {
  const json root = files::ParseShallowJson(text);
  if (!root.is_object()) return base::Fail("E_OPTION", "options: expected a JSON object");
  auto preset = Preset(root);
  if (!preset) return preset;
  Options options = *preset;
  std::set<std::string> known = {"preset"};
  std::string complaint;
  ForEachField(options, [&](const char* name, auto& member, bool) {
    using T = std::decay_t<decltype(member)>;
    known.insert(name);
    if (!root.contains(name) || !complaint.empty()) return;
    if (Fits<T>(root[name])) {
      member = root[name].template get<T>();
    } else {
      complaint = std::string(name) + ": found " + root[name].dump() + ", expected " + NameOfType<T>();
    }
  });
  for (const auto& [name, value] : root.items()) {
    if (complaint.empty() && !known.contains(name)) complaint = name + ": no option has this name";
  }
  if (complaint.empty()) complaint = Complaint(options);
  if (!complaint.empty()) return base::Fail("E_OPTION", complaint);
  return options;
}

std::vector<double> EvalTaus(const Options& options) { return ParseNumbers(options.eval_taus).value(); }

int64_t WindowTokens(const Options& options) { return ParseGranularity(options.coverage_granularity); }

int64_t AdapterRank(const Options& options) { return ParseTune(options.tune); }

std::string ToJson(const Options& options) {
  json root = json::object();
  ForEachField(options, [&](const char* name, const auto& member, bool) { root[name] = member; });
  return root.dump();
}

std::string Difference(const Options& found, const Options& expected) {
  const json left = json::parse(ToJson(found)), right = json::parse(ToJson(expected));
  std::string difference;
  ForEachField(found, [&](const char* name, const auto&, bool changes_result) {
    if (!changes_result || !difference.empty() || left[name] == right[name]) return;
    difference = std::string(name) + ": found " + left[name].dump() + ", expected " + right[name].dump();
  });
  return difference;
}

}  // namespace outrider::moe
