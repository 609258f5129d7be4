#include "moe/workbench.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <utility>

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "base/check.h"
#include "model/checkpoint.h"
#include "moe/experts.h"
#include "moe/export.h"
#include "moe/ffn_hooks.h"
#include "moe/tensor_file.h"
#include "moe/trainer.h"

namespace outrider::moe {
namespace {

constexpr int64_t kMassBytesMax = int64_t{16} << 30;
constexpr int64_t kSelectionTokens = 16'384;  // per domain, to choose between static masks

int64_t KeptChannels(const Options& options, const model::Config& config) {
  return std::clamp<int64_t>(std::llround(options.experts_keep * static_cast<double>(config.ffn)), 1, config.ffn);
}

// Cuts `count` tokens from `place` on into the units of the granularity.
std::vector<int64_t> UnitsOf(const Options& options, const TokenFile& file, const Place& place, int64_t count) {
  const int64_t window = WindowTokens(options);
  if (window == 0) return file.PiecesOf(place.offset, count);
  std::vector<int64_t> units;
  for (int64_t begin = 0; begin < count; begin += window) units.push_back(std::min(window, count - begin));
  return units;
}

Statistic StatisticNamed(const std::string& name) {
  if (name == "l1_out") return Statistic::kL1Out;
  return name == "fluctuation" ? Statistic::kFluctuation : Statistic::kL1;
}

Routing RoutingNamed(const std::string& name) {
  if (name == "router") return Routing::kRouter;
  if (name == "random") return Routing::kRandom;
  return name == "domain" ? Routing::kDomain : Routing::kNone;
}

// Within it operators that have a deterministic form take that one, and those that have none throw.
class DeterministicScope {
 public:
  explicit DeterministicScope(bool on) : on_(on), before_(at::globalContext().deterministicAlgorithms()) {
    if (on_) at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  }
  ~DeterministicScope() {
    if (on_) at::globalContext().setDeterministicAlgorithms(before_, /*warn_only=*/false);
  }
  DeterministicScope(const DeterministicScope&) = delete;
  DeterministicScope& operator=(const DeterministicScope&) = delete;

 private:
  bool on_, before_;
};

base::Result<Teacher> LoadTeacher(const std::string& folder, const model::Config& student, at::ScalarType dtype,
                                  at::Device device) {
  auto config = model::LoadConfig(folder);
  if (!config) return tl::unexpected(config.error());
  if (config->vocab != student.vocab) {
    return base::Fail("E_VOCAB", folder + ": found a vocabulary of " + std::to_string(config->vocab) + ", expected " +
                                     std::to_string(student.vocab));
  }
  auto parameters = model::LoadParameters(folder, *config, dtype, device);
  if (!parameters) return tl::unexpected(parameters.error());
  return Teacher{*std::move(config), *std::move(parameters)};
}

}  // namespace

struct Workbench::State {
  Options options;
  TokenData data;
  RoutedModel model;
  std::optional<Teacher> teacher;
  std::optional<Trainer> trainer;

  State(Options o, TokenData d) : options(std::move(o)), data(std::move(d)) {}

  base::Result<void> Check() const {
    const auto positions = std::max(options.sequence, options.calibration_tokens);
    if (data.vocab() != model.config.vocab) {
      return base::Fail("E_VOCAB", options.data + "/data.json: found a vocabulary of " + std::to_string(data.vocab()) +
                                       ", expected " + std::to_string(model.config.vocab) + " as in " + options.model);
    }
    if (positions > model.config.max_positions) {
      return base::Fail("E_OPTION", "sequence: found " + std::to_string(positions) + ", expected at most " +
                                        std::to_string(model.config.max_positions));
    }
    const auto domains = static_cast<int64_t>(data.domains().size());
    if (options.routing_kind == "domain" && options.experts_kind != "published" && options.experts_count != domains) {
      return base::Fail("E_OPTION", "routing.kind: domain needs one expert per domain: " + std::to_string(domains));
    }
    if (options.experts_kind == "published" && domains > kExpertsMax) {
      return base::Fail("E_OPTION", "experts.kind: published has one expert per domain, found " +
                                        std::to_string(domains) + ", expected at most " + std::to_string(kExpertsMax));
    }
    if (auto ok = data.Require("train", positions + 1); !ok) return ok;
    if (auto ok = data.Require("valid", options.sequence + 1); !ok) return ok;
    return data.Require("test", options.sequence + 1);
  }

  // Shows `look` the unmasked activations of every calibration sample; each sample is a forward pass of its own, so
  // that nothing depends on how many fit into memory.
  template <class Look>
  void Calibrate(const Look& look) const {
    const at::NoGradGuard no_grad;
    const model::Parameters weights = model.ComputeCopy();
    for (const Place& place : data.Spread("train", options.calibration_samples, options.calibration_tokens + 1)) {
      const TokenBatch batch = MakeBatch(data, "train", {&place, 1}, options.calibration_tokens, 0, model.device());
      LookingHook hook([&](int64_t layer, const at::Tensor& h) { look(place, layer, h); });
      model::HiddenStates(model.config, weights, batch.inputs, &hook);
    }
  }

  std::vector<at::Tensor> Down() const {
    std::vector<at::Tensor> down;
    for (const model::Layer& layer : model.masters.layers) down.push_back(layer.down.detach());
    return down;
  }

  std::vector<ChannelSums> Sums() const {
    std::vector<ChannelSums> sums;
    for (size_t d = 0; d < data.domains().size(); ++d) {
      sums.emplace_back(model.config.layers, model.config.ffn, model.device());
    }
    Calibrate([&](const Place& place, int64_t layer, const at::Tensor& h) {
      sums[static_cast<size_t>(place.domain)].Add(layer, h, options.calibration_tokens);
    });
    return sums;
  }

  base::Result<void> MakeCoverage(ExpertFacts& facts) {
    int64_t units = 0;
    for (const Place& p : data.Spread("train", options.calibration_samples, options.calibration_tokens + 1)) {
      units +=
          static_cast<int64_t>(UnitsOf(options, data.File(p.domain, "train"), p, options.calibration_tokens).size());
    }
    const int64_t bytes = 2 * units * model.config.layers * model.config.ffn;
    if (bytes > kMassBytesMax || units < options.experts_count) {
      return base::Fail("E_OPTION", "calibration.samples: found " + std::to_string(units) + " units of " +
                                        std::to_string(bytes) + " bytes in all, expected at least " +
                                        std::to_string(options.experts_count) + " units and at most " +
                                        std::to_string(kMassBytesMax) + " bytes");
    }
    MassSample sample(model.config.layers, model.config.ffn, units, model.device());
    std::vector<at::Tensor> norms;
    for (const at::Tensor& down : Down()) norms.push_back(ColumnNorms(down));
    Calibrate([&](const Place& place, int64_t layer, const at::Tensor& h) {
      sample.Add(layer, h, norms[static_cast<size_t>(layer)],
                 UnitsOf(options, data.File(place.domain, "train"), place, options.calibration_tokens));
    });
    CoverageExperts found = FindCoverageExperts(sample, {.experts = options.experts_count,
                                                         .keep = KeptChannels(options, model.config),
                                                         .rounds = options.coverage_rounds,
                                                         .seed = static_cast<uint64_t>(options.seed),
                                                         .sink_factor = options.coverage_sink});
    model.masks = std::move(found.masks);
    facts.coverage = std::move(found.coverage);
    facts.reseeded = found.reseeded;
    return {};
  }

  void MakeStatic(ExpertFacts& facts) {
    const std::vector<ChannelSums> sums = Sums();
    const std::vector<at::Tensor> down = Down();
    const auto choose = [&](const std::string& name) {
      model.masks = SelectStatic(sums, StatisticNamed(name), down, KeptChannels(options, model.config));
      model.fill = name == "fluctuation" ? Compensation(sums, model.masks) : std::vector<at::Tensor>();
    };
    facts.statistic = options.experts_statistic;
    if (options.experts_statistic == "best") {
      for (const char* name : {"l1", "l1_out", "fluctuation"}) {
        choose(name);
        double nats = 0, tokens = 0;
        for (const DomainLoss& d : Evaluate("valid", EvalMode::kRefactored, kSelectionTokens)) {
          nats += d.nats;
          tokens += static_cast<double>(d.tokens);
        }
        facts.candidates[name] = nats / tokens;
      }
      facts.statistic = std::ranges::min_element(facts.candidates, {}, [](const auto& c) { return c.second; })->first;
    }
    choose(facts.statistic);
  }

  base::Result<ExpertFacts> MakeExperts() {
    ExpertFacts facts;
    if (options.experts_kind == "coverage") {
      if (auto done = MakeCoverage(facts); !done) return tl::unexpected(done.error());
    } else if (options.experts_kind == "published") {
      facts.statistic = options.experts_statistic;
      model.masks =
          SelectPublished(Sums(), StatisticNamed(facts.statistic), Down(), KeptChannels(options, model.config));
    } else if (options.experts_kind == "static") {
      MakeStatic(facts);
    }
    for (int64_t l = 0; l < model.masks.layers(); ++l) {
      facts.layers.push_back(model.masks.Count(l));
      facts.delta.push_back(model.masks.MeanDelta(l));
    }
    facts.hash = model.masks.Hash();
    if (auto done = MakeTrainer(); !done) return tl::unexpected(done.error());
    return facts;
  }

  RouterShape Shape() const {
    return {.vocab = model.config.vocab,
            .experts = model.masks.experts(),
            .width = options.router_width,
            .heads = options.router_heads,
            .scale = options.router_scale == "none" ? AttentionScale::kNone : AttentionScale::kSqrt,
            .embedding = options.router_embedding == "own" ? RouterEmbedding::kOwn : RouterEmbedding::kTied,
            .attention = options.router_attention};
  }

  // The losses of the authors' program rank channels beside the permanent ones.
  base::Result<void> CheckLoss() const {
    if (!options.router_loss.starts_with("code")) return {};
    for (int64_t l = 0; l < model.masks.layers(); ++l) {
      const LayerCounts counts = model.masks.Count(l);
      int64_t active = 0;
      for (const int64_t n : counts.active) active += n;
      const int64_t own = active / model.masks.experts() - counts.permanent;
      if (own >= 2) continue;
      return base::Fail("E_OPTION", "router.loss: layer " + std::to_string(l) + ": found " + std::to_string(own) +
                                        " channels per expert beside the permanent ones, expected at least 2");
    }
    return {};
  }

  base::Result<void> MakeTrainer() {
    if (model.routing == Routing::kRouter) {
      if (auto ok = CheckLoss(); !ok) return ok;
      auto router = Router::Make(Shape(), static_cast<uint64_t>(options.seed), model.masters.embed);
      if (!router) return tl::unexpected(router.error());
      model.router = *std::move(router);
    }
    trainer.emplace(options, data, model, teacher ? &*teacher : nullptr);
    return {};
  }

  std::vector<DomainLoss> Evaluate(const std::string& split, EvalMode mode, int64_t tokens) const;
  void AddWindow(const TokenBatch& batch, const TokenFile& file, const at::Tensor& nats, const at::Tensor& ids,
                 DomainLoss& out) const;
};

// nats and ids [S] of one text on the CPU; ids undefined without routing.
void Workbench::State::AddWindow(const TokenBatch& batch, const TokenFile& file, const at::Tensor& nats,
                                 const at::Tensor& ids, DomainLoss& out) const {
  const float* loss = nats.const_data_ptr<float>();
  auto next = std::ranges::upper_bound(file.documents, batch.places[0].offset);
  for (int64_t t = 0; t < nats.numel(); ++t) {
    const int64_t target = batch.places[0].offset + t + 1;
    while (next != file.documents.end() && *next <= target) ++next;
    const int64_t document = next - file.documents.begin() - 1;
    if (out.documents.empty() || out.documents.back().document != document) out.documents.push_back({document, 0, 0});
    out.documents.back().nats += loss[t];
    ++out.documents.back().tokens;
  }
  if (ids.defined()) out.routes.Add({ids.const_data_ptr<int64_t>(), static_cast<size_t>(ids.numel())});
}

std::vector<DomainLoss> Workbench::State::Evaluate(const std::string& split, EvalMode mode, int64_t tokens) const {
  const at::NoGradGuard no_grad;
  const model::Parameters weights = model.ComputeCopy();
  const RoutedModel::Masking masking = model.Prepare();
  const bool refactored = mode == EvalMode::kRefactored;
  std::vector<DomainLoss> losses;
  for (int64_t d = 0; d < static_cast<int64_t>(data.domains().size()); ++d) {
    const TokenFile& file = data.File(d, split);
    DomainLoss& out = losses.emplace_back();
    out.domain = data.domains()[static_cast<size_t>(d)];
    out.routes = RouteStats(std::max<int64_t>(model.masks.experts(), 1));
    const int64_t windows = (static_cast<int64_t>(file.tokens.size()) - 1) / options.sequence;
    const int64_t used = std::clamp<int64_t>(tokens / options.sequence, 1, windows);
    for (int64_t w = 0; w < used; ++w) {
      const Place place{d, w * windows / used * options.sequence};
      const uint64_t key = Random64(static_cast<uint64_t>(options.seed), Use::kRandomIds, ~0U, static_cast<uint32_t>(d),
                                    static_cast<uint32_t>(w));
      const TokenBatch batch = MakeBatch(data, split, {&place, 1}, options.sequence, key, model.device());
      const at::Tensor ids = refactored && model.Masked() ? model.ExpertIds(batch) : at::Tensor();
      const auto hook = refactored ? model.Hook(masking, ids) : nullptr;
      const at::Tensor hidden = model::HiddenStates(model.config, weights, batch.inputs, hook.get());
      const TokenLoss loss =
          ChunkedTokenLoss(hidden.flatten(0, 1), weights.head, batch.targets.flatten(), {}, options.chunk);
      AddWindow(batch, file, loss.nats.to(at::kCPU), ids.defined() ? ids.to(at::kCPU) : ids, out);
    }
    for (const DocumentLoss& document : out.documents) {
      out.tokens += document.tokens;
      out.nats += document.nats;
    }
  }
  return losses;
}

Workbench::Workbench(std::unique_ptr<State> state) : state_(std::move(state)) {}
Workbench::Workbench(Workbench&&) noexcept = default;
Workbench& Workbench::operator=(Workbench&&) noexcept = default;
Workbench::~Workbench() = default;

base::Result<Workbench> Workbench::Open(const Options& options) {
  auto config = model::LoadConfig(options.model);
  if (!config) return tl::unexpected(config.error());
  auto data = TokenData::Open(options.data);
  if (!data) return tl::unexpected(data.error());
  auto state = std::make_unique<State>(options, *std::move(data));
  RoutedModel& model = state->model;
  model.config = *std::move(config);
  model.dtype = options.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  model.routing = RoutingNamed(options.routing_kind);
  model.tau = options.routing_tau;
  if (options.experts_kind == "contextual") model.contextual = KeptChannels(options, model.config);
  if (auto ok = state->Check(); !ok) return tl::unexpected(ok.error());
  const at::Device device(options.device);
  // Read by cuBLAS when it starts: without a workspace of fixed size its sums differ from run to run.
  if (options.deterministic && device.is_cuda()) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  const int64_t rank = AdapterRank(options);
  auto parameters = model::LoadParameters(options.model, model.config, rank > 0 ? model.dtype : at::kFloat, device);
  if (!parameters) return tl::unexpected(parameters.error());
  model.masters = *std::move(parameters);
  if (rank > 0) model.adapter = Adapter::Make(model.config, model.masters, rank, static_cast<uint64_t>(options.seed));
  if (options.distill > 0) {
    const std::string& folder = options.teacher == "parent" ? options.model : options.teacher;
    auto teacher = LoadTeacher(folder, model.config, model.dtype, device);
    if (!teacher) return tl::unexpected(teacher.error());
    state->teacher = *std::move(teacher);
  }
  return Workbench(std::move(state));
}

base::Result<ExpertFacts> Workbench::MakeExperts() { return state_->MakeExperts(); }

base::Result<StepFacts> Workbench::Step(StageKind kind, int64_t round, int64_t step, int64_t steps) {
  OUTRIDER_CHECK(state_->trainer.has_value(), "a step before the experts were made");
  Trainer& trainer = *state_->trainer;
  const DeterministicScope scope(state_->options.deterministic && state_->model.device().is_cuda());
  const auto report =
      kind == StageKind::kRouter ? trainer.RouterStep(round, step, steps) : trainer.ExpertStep(round, step, steps);
  if (!report) return tl::unexpected(report.error());
  return StepFacts{report->loss, report->nats, report->divergence, report->gradient_norm, report->rate, report->tokens};
}

base::Result<std::vector<DomainLoss>> Workbench::Evaluate(const std::string& split, EvalMode mode, int64_t tokens) {
  return state_->Evaluate(split, mode, tokens);
}

base::Result<void> Workbench::Save(const std::string& path, int64_t position) const {
  const RoutedModel& model = state_->model;
  NamedTensors tensors = state_->trainer->State();
  if (model.Masked()) tensors.push_back({"masks", SignatureTensor(model.masks, at::kShort)});
  for (size_t l = 0; l < model.fill.size(); ++l) tensors.push_back({"fill." + std::to_string(l), model.fill[l]});
  return SaveTensors(path, tensors,
                     {{"options", ToJson(state_->options)},
                      {"position", std::to_string(position)},
                      {"experts", std::to_string(model.masks.experts())}});
}

base::Result<int64_t> Workbench::Restore(const std::string& path) {
  auto file = LoadTensors(path);
  if (!file) return tl::unexpected(file.error());
  const auto options = ParseOptions(file->metadata["options"]);
  if (!options) return tl::unexpected(options.error());
  if (const std::string difference = Difference(*options, state_->options); !difference.empty()) {
    return base::Fail("E_CHECKPOINT", path + ": " + difference);
  }
  RoutedModel& model = state_->model;
  model.fill.clear();
  NamedTensors rest;
  for (const NamedTensor& t : file->tensors) {
    if (t.name == "masks") {
      model.masks = MasksFrom(t.tensor, std::stoll(file->metadata["experts"]));
    } else if (t.name.starts_with("fill.")) {
      model.fill.resize(static_cast<size_t>(model.config.layers));
      model.fill.at(static_cast<size_t>(std::stoll(t.name.substr(5)))) = t.tensor;
    } else {
      rest.push_back(t);
    }
  }
  if (auto made = state_->MakeTrainer(); !made) return tl::unexpected(made.error());
  if (auto done = state_->trainer->Restore(rest); !done) return tl::unexpected(done.error());
  return std::stoll(file->metadata["position"]);
}

base::Result<void> Workbench::Export(const std::string& folder) const {
  return ExportModel(folder, state_->model, state_->options, state_->data.domains());
}

int64_t Workbench::Parameters() const {
  int64_t count = 0;
  for (const NamedTensor& t : state_->model.Named()) count += t.tensor.numel();
  return count;
}

int64_t Workbench::RouterParameters() const {
  return state_->model.router ? ParameterCount(state_->model.router->shape()) : 0;
}

const Masks& Workbench::masks() const { return state_->model.masks; }

base::Result<std::vector<float>> Workbench::RouterLogits(const std::vector<int64_t>& ids) const {
  const at::NoGradGuard no_grad;
  const RoutedModel& model = state_->model;
  if (!model.router) return base::Fail("E_OPTION", "routing.kind: this model has no router");
  const at::Tensor input = at::tensor(ids, at::kLong).unsqueeze(0).to(model.device());
  const at::Tensor logits = model.RouterLogits(input).to(at::kCPU).flatten().contiguous();
  return std::vector<float>(logits.const_data_ptr<float>(), logits.const_data_ptr<float>() + logits.numel());
}

}  // namespace outrider::moe
