#include "moe/layerwise.h"

#include <algorithm>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "base/check.h"
#include "moe/ffn_hooks.h"

namespace outrider::moe {

void LayerRoutingHook::OnInput(int64_t layer, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  Take(router_.Logits(layer, x));
}

void LayerRoutingHook::Take(const at::Tensor& logits) {
  ids_ = router_.Choose(logits.detach());
  if (chosen_ != nullptr) chosen_->push_back(ids_);
}

at::Tensor LayerRoutingHook::OnHidden(int64_t layer, const at::Tensor& h) {
  const at::Tensor& masks = masks_.at(static_cast<size_t>(layer));
  if (ids_.size(1) == 1) return MaskRows(h, masks, ids_.squeeze(1), form_);
  const at::Tensor uses = at::zeros({ids_.size(0), masks.size(0)}, masks.options()).scatter_(1, ids_, 1.0);
  return h * uses.matmul(masks).clamp_max(1);
}

namespace {

Masks OneLayer(const Masks& masks, int64_t layer) {
  Masks one(masks.experts(), 1, masks.channels());
  one.SetLayer(0, masks.Layer(layer));
  return one;
}

// A routed pass without gradients of the model; each layer's loss is differentiated as soon as it is known.
class TuningHook : public LayerRoutingHook {
 public:
  TuningHook(const Options& options, const RoutedModel& model, const std::vector<at::Tensor>& masks,
             std::vector<RouterTargets>& targets, double share)
      : LayerRoutingHook(*model.layer_router, masks),
        options_(options),
        targets_(targets),
        weight_(share / static_cast<double>(targets.size())) {}

  void OnInput(int64_t layer, const at::Tensor& x) override {
    const at::AutoGradMode with_gradients(true);
    logits_ = router().Logits(layer, x.detach());
    Take(logits_);
  }

  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    RouterTargets& targets = targets_.at(static_cast<size_t>(layer));
    targets.Clear();
    targets.Add(0, h);
    const int64_t window = WindowTokens(options_) == 0 ? options_.sequence : WindowTokens(options_);
    if (window > 1 && options_.router_loss == "coverage") targets.Smooth(options_.sequence, window);
    const at::AutoGradMode with_gradients(true);
    at::Tensor loss = targets.Loss(logits_);
    const at::Tensor texts = logits_.view({-1, options_.sequence, logits_.size(1)});
    if (options_.router_balance > 0) loss = loss + BalanceLoss(texts) * options_.router_balance;
    if (options_.router_stay > 0) loss = loss + StayLoss(texts) * options_.router_stay;
    loss = loss * weight_;
    loss.backward();
    total_ = total_.defined() ? total_ + loss.detach() : loss.detach();
    return LayerRoutingHook::OnHidden(layer, h);
  }

  const at::Tensor& Total() const { return total_; }

 private:
  const Options& options_;
  std::vector<RouterTargets>& targets_;
  double weight_;
  at::Tensor logits_, total_;
};

}  // namespace

LayerwiseLoss::LayerwiseLoss(const Options& options, const RoutedModel& model, const RoutedModel::Masking& masking,
                             RouterLoss form, const std::vector<at::Tensor>& column_norms)
    : options_(options), model_(model), masking_(masking) {
  OUTRIDER_CHECK(model.layer_router.has_value(), "a router stage without a router");
  for (int64_t l = 0; l < model.masks.layers(); ++l) {
    targets_.emplace_back(form, OneLayer(model.masks, l),
                          std::vector<at::Tensor>{column_norms.at(static_cast<size_t>(l))}, model.device());
  }
}

at::Tensor LayerwiseLoss::MicroStep(const TokenBatch& batch, double share) {
  const at::NoGradGuard no_grad;
  TuningHook hook(options_, model_, masking_.masks, targets_, share);
  model::HiddenStates(model_.config, model_.ComputeCopy(), batch.inputs, &hook);
  return hook.Total();
}

}  // namespace outrider::moe
