#include "moe/trainer.h"

#include <algorithm>
#include <atomic>
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

std::string NextProgram() {
  static std::atomic<int64_t> count = 0;
  return "-" + std::to_string(++count);
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
      program_(NextProgram()),
      data_(data),
      model_(model),
      teacher_(teacher),
      masking_(model.Prepare()),
      router_loss_(RouterLossNamed(options.router_loss)) {
  const AdamWOptions adam{.weight_decay = options.weight_decay, .clip_norm = options.clip_norm};
  backbone_.emplace(Trainable(model.Tuned()), adam);
  if (model.router) {
    router_.emplace(Trainable(model.router->Parameters()), adam);
    targets_.emplace(router_loss_, model.masks, std::vector<at::Tensor>(), model.device());
  }
  if (Joint()) kept_.emplace(model, masking_);
  if (model.layer_router) router_.emplace(Trainable(model.layer_router->Parameters()), adam);
}

std::vector<TokenBatch> Trainer::MicroBatches(Use use, int64_t round, int64_t step) const {
  const auto seed = static_cast<uint64_t>(options_.seed);
  const int64_t steps = use == Use::kRouter ? options_.router_steps : options_.expert_steps;
  const std::vector<Place> places =
      data_.Draw(seed, use, (round * steps + step) * options_.batch, options_.batch, options_.sequence + 1);
  std::vector<TokenBatch> batches;
  for (size_t begin = 0; begin < places.size(); begin += static_cast<size_t>(options_.micro_batch)) {
    const size_t count = std::min(places.size() - begin, static_cast<size_t>(options_.micro_batch));
    const uint64_t key = Random64(seed, Use::kRandomIds, static_cast<uint32_t>(round), static_cast<uint32_t>(step),
                                  static_cast<uint32_t>(begin));
    batches.push_back(
        MakeBatch(data_, "train", std::span(places).subspan(begin, count), options_.sequence, key, model_.device()));
  }
  return batches;
}

base::Result<StepReport> Trainer::Run(const std::string& stage,
                                      const std::function<base::Result<StepReport>()>& step) const {
  if (!options_.coexec) return step();
  base::Result<StepReport> report;
  bool counted = false;
  {
    const StepScope scope((stage + program_).c_str());
    counted = scope.Active();
    report = step();
  }
  if (report && counted) report->coexec = LastRow();
  return report;
}

at::Tensor Trainer::Regularised(at::Tensor loss, const at::Tensor& z) const {
  if (options_.router_balance > 0) loss = loss + BalanceLoss(z) * options_.router_balance;
  if (options_.router_stay > 0) loss = loss + StayLoss(z) * options_.router_stay;
  return loss;
}

at::Tensor Trainer::RouterMicroStep(const TokenBatch& batch, double share) {
  {
    const at::NoGradGuard no_grad;
    targets_->Clear();
    if (ByGradient()) {
      const std::vector<at::Tensor> mass = GradientMass(model_, model_.ComputeCopy(), batch, options_.chunk, probes_);
      for (size_t l = 0; l < mass.size(); ++l) targets_->AddMass(static_cast<int64_t>(l), mass[l]);
    } else {
      LookingHook look([&](int64_t layer, const at::Tensor& h) { targets_->Add(layer, h); });
      model::HiddenStates(model_.config, model_.ComputeCopy(), batch.inputs, &look);
    }
    if (const int64_t window = WindowOf(options_); window > 1 && router_loss_ == RouterLoss::kCoverage) {
      targets_->Smooth(options_.sequence, window);
    }
  }
  const at::Tensor z = model_.RouterLogits(batch.inputs);
  const at::Tensor loss = Regularised(targets_->Loss(z.view({batch.Tokens(), -1})), z) * share;
  loss.backward();
  return loss.detach();
}

base::Result<StepReport> Trainer::TuneRouter(const std::vector<TokenBatch>& batches, double rate) {
  StepReport report{.rate = rate, .tokens = options_.batch * options_.sequence};
  std::vector<at::Tensor> losses;  // read behind the last launch
  router_->ZeroGradients();
  for (const TokenBatch& batch : batches) {
    const double share = static_cast<double>(batch.places.size()) / static_cast<double>(options_.batch);
    losses.push_back(layerwise_ ? layerwise_->MicroStep(batch, share) : RouterMicroStep(batch, share));
  }
  for (const at::Tensor& loss : losses) report.loss += loss.item<double>();
  auto norm = router_->Step(rate);
  if (!norm) return tl::unexpected(norm.error());
  report.gradient_norm = *norm;
  return report;
}

double Trainer::Rate(bool router, int64_t round, int64_t step, int64_t steps) const {
  const double peak = router ? options_.router_rate : options_.expert_rate;
  return LearningRate({.peak = peak, .round_decay = options_.round_decay, .steps = steps}, round, step);
}

base::Result<StepReport> Trainer::RouterStep(int64_t round, int64_t step, int64_t steps) {
  OUTRIDER_CHECK(router_.has_value(), "a router stage without a router");
  const std::vector<TokenBatch> batches = MicroBatches(Use::kRouter, round, step);
  if (ByGradient()) {  // before the step, which then finds what the next one finds
    const auto like = model_.masters.embed.options().dtype(model_.dtype);
    for (const TokenBatch& batch : batches) {
      probes_.Take(model_.config.layers, {batch.Tokens(), model_.config.ffn}, like);
    }
  } else {
    std::vector<at::Tensor> norms;
    for (const model::Layer& layer : model_.masters.layers) norms.push_back(ColumnNorms(layer.down));
    if (targets_) targets_->SetColumnNorms(norms);
    if (model_.layer_router) layerwise_.emplace(options_, model_, masking_, router_loss_, norms);
  }
  const double rate = Rate(/*router=*/true, round, step, steps);
  auto report = Run("router", [&] { return TuneRouter(batches, rate); });
  if (!report) return tl::unexpected(At(report.error(), "router", round, step));
  return report;
}

void Trainer::JointMicroStep(const TokenBatch& batch, double share) {
  {
    const at::NoGradGuard no_grad;
    const auto [kept, total] = kept_->Sums();
    targets_->SetKept(kept, total);
    if (const int64_t window = WindowOf(options_); window > 1) targets_->Smooth(options_.sequence, window);
  }
  const at::Tensor z = model_.RouterLogits(batch.inputs);
  (Regularised(targets_->Loss(z.view({batch.Tokens(), -1})), z) * share).backward();
}

TokenLoss Trainer::ExpertMicroStep(const TokenBatch& batch, int64_t tokens_of_step) {
  const at::Tensor ids = model_.ExpertIds(batch);
  const auto masking = kept_ ? nullptr : model_.Hook(masking_, ids);
  const model::Parameters weights = model_.ComputeCopy();
  model::FfnHook* hook = kept_ ? &kept_->Hook(ids) : masking.get();
  const at::Tensor hidden = model::HiddenStates(model_.config, weights, batch.inputs, hook);
  TeacherLogits teacher;
  if (teacher_ != nullptr) {
    const at::NoGradGuard no_grad;
    teacher.hidden = model::HiddenStates(teacher_->config, teacher_->parameters, batch.inputs).flatten(0, 1);
    teacher.head = teacher_->parameters.head;
    teacher.weight = options_.distill;
  }
  TokenLoss loss = ChunkedTokenLoss(hidden.flatten(0, 1), weights.head, batch.targets.flatten(), teacher,
                                    options_.chunk, 1 / static_cast<double>(tokens_of_step));
  {
    const at::NoGradGuard no_grad;
    loss.nats = loss.nats.sum();  // here, where it is launched with the rest; what reads it starts nothing
  }
  loss.objective.backward();
  loss.objective.reset();  // lets the graph go
  if (kept_) JointMicroStep(batch, static_cast<double>(batch.Tokens()) / static_cast<double>(tokens_of_step));
  return loss;
}

base::Result<StepReport> Trainer::TuneExperts(const std::vector<TokenBatch>& batches, double rate, double router_rate) {
  StepReport report{.rate = rate, .tokens = options_.batch * options_.sequence};
  const auto tokens = static_cast<double>(report.tokens);
  std::vector<TokenLoss> parts;  // read behind the last launch, so that a GPU never waits for the host
  backbone_->ZeroGradients();
  if (kept_) router_->ZeroGradients();
  for (const TokenBatch& batch : batches) parts.push_back(ExpertMicroStep(batch, report.tokens));
  for (const TokenLoss& part : parts) {
    report.loss += part.total.item<double>() / tokens;
    report.nats += part.nats.item<double>() / tokens;
    report.divergence += part.divergence.item<double>() / tokens;
  }
  if (!std::isfinite(report.loss)) return base::Fail("E_NAN", "the loss is not finite");
  auto norm = backbone_->Step(rate);
  if (!norm) return tl::unexpected(norm.error());
  report.gradient_norm = *norm;
  if (!kept_) return report;
  if (auto of_router = router_->Step(router_rate); !of_router) return tl::unexpected(of_router.error());
  return report;
}

base::Result<StepReport> Trainer::ExpertStep(int64_t round, int64_t step, int64_t steps) {
  const std::vector<TokenBatch> batches = MicroBatches(Use::kExpert, round, step);
  if (kept_) {
    for (const TokenBatch& batch : batches) kept_->Prepare(batch.Tokens());
  }
  const double rate = Rate(/*router=*/false, round, step, steps);
  const double router_rate = Rate(/*router=*/true, round, step, steps);
  auto report = Run("expert", [&] { return TuneExperts(batches, rate, router_rate); });
  if (!report) return tl::unexpected(At(report.error(), "expert", round, step));
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
