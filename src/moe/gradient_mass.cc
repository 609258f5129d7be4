#include "moe/gradient_mass.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "moe/losses.h"

namespace outrider::moe {
namespace {

class KeepingHook : public model::FfnHook {
 public:
  at::Tensor OnHidden(int64_t, const at::Tensor& h) override {
    h.retain_grad();
    kept.push_back(h);
    return h;
  }
  std::vector<at::Tensor> kept;
};

}  // namespace

std::vector<at::Tensor> GradientMass(const RoutedModel& model, const model::Parameters& weights,
                                     const TokenBatch& batch, int64_t chunk) {
  KeepingHook hook;
  {
    const at::AutoGradMode recording(true);
    model::Parameters frozen = weights;
    for (const model::NamedTensor& t : model::NamedTensors(model.config, frozen)) *t.tensor = t.tensor->detach();
    frozen.head = weights.head.detach();
    frozen.embed.requires_grad_();  // so that every activation has a gradient
    const at::Tensor hidden = model::HiddenStates(model.config, frozen, batch.inputs, &hook);
    ChunkedTokenLoss(hidden.flatten(0, 1), frozen.head, batch.targets.flatten(), {}, chunk).total.backward();
  }
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> mass;
  at::Tensor sum;
  for (const at::Tensor& h : hook.kept) {
    mass.push_back((h.detach().to(at::kFloat) * h.grad().to(at::kFloat)).abs());
    const at::Tensor row = mass.back().sum(-1, true);
    sum = sum.defined() ? sum + row : row;
  }
  const at::Tensor scale = static_cast<double>(mass.size()) / sum.clamp_min(1e-30);
  for (at::Tensor& layer : mass) layer *= scale;
  return mass;
}

}  // namespace outrider::moe
