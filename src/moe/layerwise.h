#pragma once
// Running and tuning a model whose layers choose their experts themselves.

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/llama.h"
#include "moe/layer_router.h"
#include "moe/losses.h"
#include "moe/options.h"
#include "moe/routed_model.h"

namespace outrider::moe {

// Masks h of every layer by the experts that the layer's router chooses: their union. No gradient reaches the router.
class LayerRoutingHook : public model::FfnHook {
 public:
  // masks: per layer [N, D] in the dtype of h. chosen: nullptr, or takes what each layer chose, int64 [T, top]. Router,
  // masks and chosen stay the caller's and must outlive the hook.
  LayerRoutingHook(const LayerRouter& router, const std::vector<at::Tensor>& masks,
                   std::vector<at::Tensor>* chosen = nullptr, MaskForm form = MaskForm::kLean)
      : router_(router), masks_(masks), chosen_(chosen), form_(form) {}
  void OnInput(int64_t layer, const at::Tensor& x) override;
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override;

 protected:
  void Take(const at::Tensor& logits);  // chooses for the layer whose OnHidden comes next
  const LayerRouter& router() const { return router_; }

 private:
  const LayerRouter& router_;
  const std::vector<at::Tensor>& masks_;
  std::vector<at::Tensor>* chosen_;
  MaskForm form_;
  at::Tensor ids_;  // [T, top]
};

// The loss of the routers of all layers: in each layer that of the decoupled router, with this layer's overlaps as its
// own target; mean over layers. Inputs and targets are those of the model as it is routed now, so a router learns from
// what it will see. Gradients are added up in the router's parameters.
class LayerwiseLoss {
 public:
  // All stay the caller's. column_norms: per layer [D], see RouterTargets.
  LayerwiseLoss(const Options& options, const RoutedModel& model, const RoutedModel::Masking& masking, RouterLoss form,
                const std::vector<at::Tensor>& column_norms);
  // Backward pass of `share` times the mean loss per token of `batch`; returns that product, a scalar.
  at::Tensor MicroStep(const TokenBatch& batch, double share);

 private:
  const Options& options_;
  const RoutedModel& model_;
  const RoutedModel::Masking& masking_;
  std::vector<RouterTargets> targets_;  // per layer
};

}  // namespace outrider::moe
