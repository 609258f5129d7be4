#include "moe/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "base/check.h"
#include "moe/experts.h"
#include "moe/ffn_hooks.h"
#include "moe/gradient_mass.h"
#include "moe/layerwise.h"
#include "moe/schedule.h"

namespace outrider::moe {
namespace {

base::Error At(base::Error error, const char* stage, int64_t round, int64_t step) {
  error.message = std::string(stage) + " stage, round " + std::to_string(round) + ", step " + std::to_string(step) +
                  ": " + error.message;
  return error;
}

// Tokens that share a router target; a document is taken as the whole text.
int64_t WindowOf(const Options& options) {
  const int64_t window = WindowTokens(options);
  return window == 0 ? options.sequence : window;
}

NamedTensors Prefixed(const std::string& prefix, const NamedTensors& tensors) {
  NamedTensors out;
  for (const NamedTensor& t : tensors) out.push_back({prefix + t.name, t.tensor});
  return out;
}

NamedTensors WithoutPrefix(const std::string& prefix, const NamedTensors& tensors) {
  NamedTensors out;
  for (const NamedTensor& t : tensors) {
    if (t.name.starts_with(prefix)) out.push_back({t.name.substr(prefix.size()), t.tensor});
  }
  return out;
}

NamedTensors Trainable(NamedTensors tensors) {
  for (NamedTensor& t : tensors) t.tensor.requires_grad_();
  return tensors;
}

}  // namespace

RouterLoss RouterLossNamed(const std::string& name) {
  if (name == "paper") return RouterLoss::kPaper;
  if (name == "code") return RouterLoss::kCode;
  if (name == "code_abs") return RouterLoss::kCodeAbs;
  OUTRIDER_CHECK(name == "coverage", "no router loss is called ", name);
  return RouterLoss::kCoverage;
}

Trainer::Trainer(const Options& options, const TokenData& data, RoutedModel& model, const Teacher* teacher)
    : options_(options),
      data_(data),
      model_(model),
      teacher_(teacher),
      masking_(model.Prepare()),
      router_loss_(RouterLossNamed(options.router_loss)) {
  const AdamWOptions adam{.weight_decay = options.weight_decay, .clip_norm = options.clip_norm};
  backbone_.emplace(Trainable(model.Tuned()), adam);
  if (model.router) router_.emplace(Trainable(model.router->Parameters()), adam);
  if (model.layer_router) router_.emplace(Trainable(model.layer_router->Parameters()), adam);
}

double Trainer::RouterMicroStep(const TokenBatch& batch, RouterTargets& targets, double share) {
  {
    const at::NoGradGuard no_grad;
    targets.Clear();
    if (router_loss_ == RouterLoss::kCoverage && options_.coverage_mass == "gradient") {
      const std::vector<at::Tensor> mass = GradientMass(model_, model_.ComputeCopy(), batch, options_.chunk);
      for (size_t l = 0; l < mass.size(); ++l) targets.AddMass(static_cast<int64_t>(l), mass[l]);
    } else {
      LookingHook look([&](int64_t layer, const at::Tensor& h) { targets.Add(layer, h); });
      model::HiddenStates(model_.config, model_.ComputeCopy(), batch.inputs, &look);
    }
    if (const int64_t window = WindowOf(options_); window > 1 && router_loss_ == RouterLoss::kCoverage) {
      targets.Smooth(options_.sequence, window);
    }
  }
  const at::Tensor z = model_.RouterLogits(batch.inputs);
  at::Tensor loss = targets.Loss(z.view({batch.Tokens(), -1}));
  if (options_.router_balance > 0) loss = loss + BalanceLoss(z) * options_.router_balance;
  if (options_.router_stay > 0) loss = loss + StayLoss(z) * options_.router_stay;
  loss = loss * share;
  loss.backward();
  return loss.item<double>();
}

base::Result<StepReport> Trainer::RouterStep(int64_t round, int64_t step, int64_t steps) {
  OUTRIDER_CHECK(router_.has_value(), "a router stage without a router");
  std::vector<at::Tensor> norms;
  for (const model::Layer& layer : model_.masters.layers) norms.push_back(ColumnNorms(layer.down));
  std::optional<RouterTargets> targets;
  std::optional<LayerwiseLoss> layerwise;
  if (model_.layer_router) {
    layerwise.emplace(options_, model_, masking_, router_loss_, norms);
  } else {
    targets.emplace(router_loss_, model_.masks, norms, model_.device());
  }
  const auto seed = static_cast<uint64_t>(options_.seed);
  const int64_t first = (round * options_.router_steps + step) * options_.batch;
  const std::vector<Place> places = data_.Draw(seed, Use::kRouter, first, options_.batch, options_.sequence + 1);
  StepReport report{.tokens = options_.batch * options_.sequence};
  router_->ZeroGradients();
  for (size_t begin = 0; begin < places.size(); begin += static_cast<size_t>(options_.micro_batch)) {
    const size_t count = std::min(places.size() - begin, static_cast<size_t>(options_.micro_batch));
    const TokenBatch batch =
        MakeBatch(data_, "train", std::span(places).subspan(begin, count), options_.sequence, 0, model_.device());
    const double share = static_cast<double>(count) / static_cast<double>(places.size());
    report.loss += layerwise ? layerwise->MicroStep(batch, share) : RouterMicroStep(batch, *targets, share);
  }
  report.rate =
      LearningRate({.peak = options_.router_rate, .round_decay = options_.round_decay, .steps = steps}, round, step);
  auto norm = router_->Step(report.rate);
  if (!norm) return tl::unexpected(At(norm.error(), "router", round, step));
  report.gradient_norm = *norm;
  return report;
}

TokenLoss Trainer::ExpertMicroStep(const TokenBatch& batch, int64_t tokens_of_step) {
  const auto hook = model_.Hook(masking_, model_.ExpertIds(batch));
  const model::Parameters weights = model_.ComputeCopy();
  const at::Tensor hidden = model::HiddenStates(model_.config, weights, batch.inputs, hook.get());
  TeacherLogits teacher;
  if (teacher_ != nullptr) {
    const at::NoGradGuard no_grad;
    teacher.hidden = model::HiddenStates(teacher_->config, teacher_->parameters, batch.inputs).flatten(0, 1);
    teacher.head = teacher_->parameters.head;
    teacher.weight = options_.distill;
  }
  TokenLoss loss =
      ChunkedTokenLoss(hidden.flatten(0, 1), weights.head, batch.targets.flatten(), teacher, options_.chunk);
  (loss.total / static_cast<double>(tokens_of_step)).backward();
  loss.total = loss.total.detach();  // lets the graph go
  return loss;
}

base::Result<StepReport> Trainer::ExpertStep(int64_t round, int64_t step, int64_t steps) {
  const auto seed = static_cast<uint64_t>(options_.seed);
  const auto stage = static_cast<uint32_t>(round), number = static_cast<uint32_t>(step);
  const int64_t first = (round * options_.expert_steps + step) * options_.batch;
  const std::vector<Place> places = data_.Draw(seed, Use::kExpert, first, options_.batch, options_.sequence + 1);
  StepReport report{.tokens = options_.batch * options_.sequence};
  const auto tokens = static_cast<double>(report.tokens);
  std::vector<TokenLoss> parts;  // read behind the last launch, so that a GPU never waits for the host
  backbone_->ZeroGradients();
  for (size_t begin = 0; begin < places.size(); begin += static_cast<size_t>(options_.micro_batch)) {
    const size_t count = std::min(places.size() - begin, static_cast<size_t>(options_.micro_batch));
    const uint64_t key = Random64(seed, Use::kRandomIds, stage, number, static_cast<uint32_t>(begin));
    const TokenBatch batch =
        MakeBatch(data_, "train", std::span(places).subspan(begin, count), options_.sequence, key, model_.device());
    parts.push_back(ExpertMicroStep(batch, report.tokens));
  }
  for (const TokenLoss& part : parts) {
    report.loss += part.total.item<double>() / tokens;
    report.nats += part.nats.sum().item<double>() / tokens;
    report.divergence += part.divergence.item<double>() / tokens;
  }
  report.rate =
      LearningRate({.peak = options_.expert_rate, .round_decay = options_.round_decay, .steps = steps}, round, step);
  if (!std::isfinite(report.loss)) {
    return tl::unexpected(At({"E_NAN", "the loss is not finite"}, "expert", round, step));
  }
  auto norm = backbone_->Step(report.rate);
  if (!norm) return tl::unexpected(At(norm.error(), "expert", round, step));
  report.gradient_norm = *norm;
  return report;
}

NamedTensors Trainer::State() const {
  NamedTensors state = Prefixed("backbone.", backbone_->State());
  if (router_) {
    for (NamedTensor& t : Prefixed("router.", router_->State())) state.push_back(std::move(t));
  }
  return state;
}

base::Result<void> Trainer::Restore(const NamedTensors& state) {
  if (auto done = backbone_->Restore(WithoutPrefix("backbone.", state)); !done) return done;
  return router_ ? router_->Restore(WithoutPrefix("router.", state)) : base::Result<void>();
}

}  // namespace outrider::moe
