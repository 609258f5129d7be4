#include "moe/pipeline.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "moe/report.h"
#include "moe/route_trace.h"
#include "moe/whole_folder.h"

namespace outrider::moe {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kCheckpointsKept = 2;

const char* NameOf(StageKind kind) { return kind == StageKind::kRouter ? "router" : "expert"; }

double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Positions of the checkpoints in a folder, ascending.
std::vector<int64_t> Checkpoints(const std::string& folder) {
  std::vector<int64_t> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    long long position = 0;
    int length = 0;
    if (std::sscanf(name.c_str(), "checkpoint-%lld.safetensors%n", &position, &length) == 1 &&
        static_cast<size_t>(length) == name.size()) {
      found.push_back(position);
    }
  }
  std::ranges::sort(found);
  return found;
}

// The thread that ran steps is an ordinary one again.
struct CoexecEnd {
  ~CoexecEnd() { Leave(); }
};

class Run {
 public:
  Run(const Options& options, Workbench& bench, const OnProgress& progress)
      : options_(options), bench_(bench), progress_(progress), stages_(StagesOf(options)) {
    for (const Stage& stage : stages_) positions_ += stage.steps;
  }

  base::Result<std::string> Go() {
    if (auto begun = Begin(); !begun) return tl::unexpected(begun.error());
    log_.open(options_.out + "/log.jsonl", std::ios::app);
    int64_t before = 0;
    for (const Stage& stage : stages_) {
      for (int64_t step = std::max<int64_t>(0, position_ - before); step < stage.steps; ++step) {
        auto go_on = Do(stage, step);
        if (!go_on) return tl::unexpected(go_on.error());
        if (!*go_on && position_ < positions_) return json({{"done", false}, {"position", position_}}).dump();
      }
      before += stage.steps;
    }
    return Finish();
  }

 private:
  std::string PathOf(int64_t position) const {
    return options_.out + "/checkpoint-" + std::to_string(position) + ".safetensors";
  }

  base::Result<void> Begin() {
    std::error_code error;
    std::filesystem::create_directories(options_.out, error);
    if (error) return base::Fail("E_WRITE", options_.out + ": create: " + error.message());
    if (const std::vector<int64_t> found = Checkpoints(options_.out); !found.empty()) {
      const auto position = bench_.Restore(PathOf(found.back()));
      if (!position) return tl::unexpected(position.error());
      position_ = *position;
      return CutLog();
    }
    const auto facts = bench_.MakeExperts();
    if (!facts) return tl::unexpected(facts.error());
    if (auto done = WriteText(options_.out + "/experts.json", ToJson(*facts) + "\n"); !done) return done;
    return Checkpoint();
  }

  // Steps behind the checkpoint are done again, and logged again.
  base::Result<void> CutLog() const {
    std::ifstream in(options_.out + "/log.jsonl");
    std::string kept;
    for (std::string line; std::getline(in, line);) {
      const json entry = json::parse(line, nullptr, false);
      if (entry.is_object() && entry.value("position", int64_t{0}) <= position_) kept += line + "\n";
    }
    return WriteText(options_.out + "/log.jsonl", kept);
  }

  base::Result<void> Checkpoint() {
    if (auto saved = bench_.Save(PathOf(position_), position_); !saved) return saved;
    std::vector<int64_t> found = Checkpoints(options_.out);
    while (static_cast<int64_t>(found.size()) > kCheckpointsKept) {
      std::error_code ignored;
      std::filesystem::remove(PathOf(found.front()), ignored);
      found.erase(found.begin());
    }
    return {};
  }

  // One step; false when the run has to stop behind it.
  base::Result<bool> Do(const Stage& stage, int64_t step) {
    const auto begin = Clock::now();
    const auto facts = bench_.Step(stage.kind, stage.round, step, stage.steps);
    if (!facts) return tl::unexpected(facts.error());
    ++position_;
    ++steps_;
    const double seconds = SecondsSince(begin);
    const Progress progress{NameOf(stage.kind), stage.round, step,   stage.steps,
                            position_,          positions_,  *facts, static_cast<double>(facts->tokens) / seconds};
    Log(progress, seconds);
    if (!log_) return base::Fail("E_WRITE", options_.out + "/log.jsonl: write");
    bool go_on = !progress_ || progress_(progress);
    go_on = go_on && (options_.seconds_max <= 0 || SecondsSince(begin_) < options_.seconds_max);
    go_on = go_on && (options_.steps_max <= 0 || steps_ < options_.steps_max);
    if (!go_on || step + 1 == stage.steps || position_ % options_.checkpoint_steps == 0) {
      if (auto saved = Checkpoint(); !saved) return tl::unexpected(saved.error());
    }
    return go_on;
  }

  void Log(const Progress& p, double seconds) {
    json line = {{"stage", p.stage},         {"round", p.round},       {"step", p.step},
                 {"loss", p.facts.loss},     {"rate", p.facts.rate},   {"gradient_norm", p.facts.gradient_norm},
                 {"tokens", p.facts.tokens}, {"position", p.position}, {"seconds", seconds}};
    if (p.stage == "expert") line["nats"] = p.facts.nats;
    if (p.facts.divergence != 0) line["divergence"] = p.facts.divergence;
    if (p.facts.coexec) line["coexec"] = json::parse(ToJson(*p.facts.coexec));
    log_ << line.dump() << std::endl;
  }

  base::Result<std::string> Finish() {
    json result = {{"done", true},
                   {"options", json::parse(ToJson(options_))},
                   {"parameters", bench_.Parameters()},
                   {"router_parameters", bench_.RouterParameters()},
                   {"tokens", json::object()},
                   {"eval", json::object()}};
    for (const Stage& stage : stages_) {
      auto& tokens = result["tokens"][NameOf(stage.kind)];
      tokens = (tokens.is_null() ? 0 : tokens.get<int64_t>()) + stage.steps * options_.batch * options_.sequence;
    }
    for (const char* split : {"valid", "test", "unseen"}) {
      for (const EvalMode mode : {EvalMode::kRefactored, EvalMode::kDense}) {
        const bool traced = split == std::string("test") && mode == EvalMode::kRefactored;
        const auto losses = bench_.Evaluate(split, mode, options_.eval_tokens, traced ? options_.trace_tokens : 0);
        if (!losses) return tl::unexpected(losses.error());
        if (auto done = traced ? Trace(split, *losses) : base::Result<void>(); !done) {
          return tl::unexpected(done.error());
        }
        result["eval"][split][mode == EvalMode::kDense ? "all_channels" : "refactored"] = json::parse(ToJson(*losses));
      }
    }
    if (auto done = Frontier(result); !done) return tl::unexpected(done.error());
    if (options_.write_model && !std::filesystem::exists(options_.out + "/model")) {
      const auto done = bench_.Export(options_.out + "/model");
      if (!done && done.error().code != "E_OPTION") return tl::unexpected(done.error());
      if (!done) result["no_model"] = done.error().message;
    }
    if (options_.write_model && AdapterRank(options_) > 0 && !std::filesystem::exists(options_.out + "/adapter")) {
      const auto done = bench_.ExportAdapter(options_.out + "/adapter");
      if (!done && done.error().code != "E_OPTION") return tl::unexpected(done.error());
    }
    if (auto done = WriteText(options_.out + "/result.json", result.dump(1) + "\n"); !done) {
      return tl::unexpected(done.error());
    }
    return result.dump();
  }

  // Locality against quality: the same model with more and more hysteresis.
  base::Result<void> Frontier(json& result) {
    if (options_.routing_kind != "router") return {};
    for (const double tau : EvalTaus(options_)) {
      bench_.SetTau(tau);
      const auto losses = bench_.Evaluate("test", EvalMode::kRefactored, options_.eval_tokens);
      if (!losses) return tl::unexpected(losses.error());
      json point = {{"tau", tau}};
      int64_t pairs = 0, stays = 0;
      for (const DomainLoss& d : *losses) {
        point["domains"][d.domain] = {{"tokens", d.tokens}, {"nats", d.nats}};
        pairs += d.routes.pairs;
        stays += d.routes.stays;
      }
      point["stay_rate"] = pairs > 0 ? static_cast<double>(stays) / static_cast<double>(pairs) : 0.0;
      result["frontier"].push_back(std::move(point));
    }
    bench_.SetTau(options_.routing_tau);
    return {};
  }

  base::Result<void> Trace(const std::string& split, const std::vector<DomainLoss>& losses) const {
    if (std::ranges::all_of(losses, [](const DomainLoss& d) { return d.traced_tokens == 0; })) return {};
    return SaveRouteTrace(options_.out + "/routes.safetensors", losses,
                          {split, bench_.masks().experts(), options_.sequence});
  }

  const Options& options_;
  Workbench& bench_;
  const OnProgress& progress_;
  std::vector<Stage> stages_;
  int64_t positions_ = 0, position_ = 0;
  int64_t steps_ = 0;  // of this call
  Clock::time_point begin_ = Clock::now();
  std::ofstream log_;
};

}  // namespace

std::vector<Stage> StagesOf(const Options& options) {
  std::vector<Stage> stages;
  const bool routed = options.routing_kind == "router" || options.routing_kind == "layerwise";
  for (int64_t round = 0; round < options.rounds; ++round) {
    if (routed && options.router_steps > 0) stages.push_back({StageKind::kRouter, round, options.router_steps});
    if (options.expert_steps > 0) stages.push_back({StageKind::kExpert, round, options.expert_steps});
  }
  if (routed && options.router_last_steps > 0) {
    stages.push_back({StageKind::kRouter, options.rounds, options.router_last_steps});
  }
  return stages;
}

base::Result<std::string> Refactor(const Options& options, const OnProgress& progress) {
  if (options.out.empty()) return base::Fail("E_OPTION", "out: expected a folder");
  auto bench = Workbench::Open(options);
  if (!bench) return tl::unexpected(bench.error());
  const CoexecEnd at_end;
  return Run(options, *bench, progress).Go();
}

}  // namespace outrider::moe
