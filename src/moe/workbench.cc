#include "moe/workbench.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <utility>

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "base/check.h"
#include "model/checkpoint.h"
#include "model/tensor_store.h"
#include "moe/choose_experts.h"
#include "moe/evaluation.h"
#include "moe/export.h"
#include "moe/tensor_file.h"
#include "moe/text_scores.h"
#include "moe/trainer.h"

namespace outrider::moe {
namespace {

Routing RoutingNamed(const std::string& name) {
  if (name == "router") return Routing::kRouter;
  if (name == "layerwise") return Routing::kLayerwise;
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

// Name of the first tensor with a value that is no finite number; empty when there is none.
std::string FirstNotFinite(const NamedTensors& tensors) {
  std::vector<at::Tensor> finite;
  for (const NamedTensor& t : tensors) finite.push_back(t.tensor.detach().isfinite().all());
  if (finite.empty()) return "";
  const at::Tensor all = at::stack(finite).to(at::kCPU);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!all[static_cast<int64_t>(i)].item<bool>()) return tensors[i].name;
  }
  return "";
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
      return base::Fail("E_OPTION", std::string(options.sequence == positions ? "sequence" : "calibration.tokens") +
                                        ": found " + std::to_string(positions) + ", expected at most " +
                                        std::to_string(model.config.max_positions) + ", max_position_embeddings of " +
                                        options.model + "/config.json");
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
    if (auto ok = data.Require("unseen", options.sequence + 1); !ok) return ok;
    return data.Require("test", options.sequence + 1);
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
    if (model.routing == Routing::kRouter || model.routing == Routing::kLayerwise) {
      if (auto ok = CheckLoss(); !ok) return ok;
    }
    if (model.routing == Routing::kLayerwise && !model.layer_router) {
      model.layer_router = EmptyLayerRouter(options, model);
    }
    if (model.routing == Routing::kRouter) {
      auto router = Router::Make(Shape(), static_cast<uint64_t>(options.seed), model.masters.embed);
      if (!router) return tl::unexpected(router.error());
      model.router = *std::move(router);
    }
    trainer.emplace(options, data, model, teacher ? &*teacher : nullptr);
    return {};
  }
};

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
  if (options.coexec) model.mask_form = MaskForm::kOperators;
  if (options.experts_kind == "contextual") model.contextual = KeptChannels(options, model.config);
  if (auto ok = state->Check(); !ok) return tl::unexpected(ok.error());
  const at::Device device(options.device);
  // Read by cuBLAS when it starts: without a workspace of fixed size its sums differ from run to run.
  if (options.deterministic && device.is_cuda()) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  const int64_t rank = AdapterRank(options);
  auto parameters = model::LoadParameters(options.model, model.config, rank > 0 ? model.dtype : at::kFloat, device);
  if (!parameters) return tl::unexpected(parameters.error());
  model.masters = *std::move(parameters);
  if (rank > 0) {
    const AdapterForm form{.rank = rank, .ffn_only = options.adapter_parts == "ffn"};
    model.adapter = Adapter::Make(model.config, model.masters, form, static_cast<uint64_t>(options.seed));
  }
  if (options.distill > 0) {
    const std::string& folder = options.teacher == "parent" ? options.model : options.teacher;
    auto teacher = LoadTeacher(folder, model.config, model.dtype, device);
    if (!teacher) return tl::unexpected(teacher.error());
    state->teacher = *std::move(teacher);
  }
  return Workbench(std::move(state));
}

base::Result<ExpertFacts> Workbench::MakeExperts() {
  auto facts = ChooseExperts(state_->options, state_->data, state_->model);
  if (!facts) return facts;
  if (auto done = state_->MakeTrainer(); !done) return tl::unexpected(done.error());
  return facts;
}

base::Result<StepFacts> Workbench::Step(StageKind kind, int64_t round, int64_t step, int64_t steps) {
  OUTRIDER_CHECK(state_->trainer.has_value(), "a step before the experts were made");
  Trainer& trainer = *state_->trainer;
  const bool deterministic = state_->options.deterministic && state_->model.device().is_cuda();
  const DeterministicScope scope(deterministic);
  auto report =
      kind == StageKind::kRouter ? trainer.RouterStep(round, step, steps) : trainer.ExpertStep(round, step, steps);
  if (deterministic && state_->options.coexec) Flush();  // what is pending belongs into the scope
  if (!report) return tl::unexpected(report.error());
  return StepFacts{report->loss, report->nats,   report->divergence,       report->gradient_norm,
                   report->rate, report->tokens, std::move(report->coexec)};
}

base::Result<std::vector<DomainLoss>> Workbench::Evaluate(const std::string& split, EvalMode mode, int64_t tokens,
                                                          int64_t trace_tokens) {
  return EvaluateModel(state_->options, state_->data, state_->model, split, mode, tokens, trace_tokens);
}

base::Result<void> Workbench::Save(const std::string& path, int64_t position) const {
  const RoutedModel& model = state_->model;
  NamedTensors tensors = state_->trainer->State();
  if (const std::string broken = FirstNotFinite(tensors); !broken.empty()) {
    return base::Fail("E_NAN", "behind step " + std::to_string(position) + ": " + broken +
                                   ": found a value that is no finite number");
  }
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

base::Result<std::vector<std::vector<TextAnswer>>> Workbench::Score(const std::vector<TextQuery>& queries,
                                                                    EvalMode mode) const {
  OUTRIDER_CHECK(state_->trainer.has_value(), "scores before the experts were made");
  return ScoreTexts(state_->model, mode, queries);
}

base::Result<void> Workbench::ExportAdapter(const std::string& folder) const {
  const auto sum = model::WeightsSha256(state_->options.model);
  if (!sum) return tl::unexpected(sum.error());
  return moe::ExportAdapter(folder, state_->model, state_->options, state_->data.domains(), *sum);
}

void Workbench::SetTau(double tau) { state_->model.tau = tau; }

int64_t Workbench::Parameters() const {
  int64_t count = 0;
  for (const NamedTensor& t : state_->model.Named()) count += t.tensor.numel();
  return count;
}

int64_t Workbench::RouterParameters() const {
  const RoutedModel& model = state_->model;
  if (model.layer_router) return model.layer_router->ParameterCount();
  return model.router ? ParameterCount(model.router->shape()) : 0;
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
