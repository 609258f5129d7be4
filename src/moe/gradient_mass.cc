#include "moe/gradient_mass.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include "moe/ffn_hooks.h"
#include "moe/losses.h"

namespace outrider::moe {
const std::vector<at::Tensor>& GradientProbes::Take(const model::Config& config, int64_t tokens,
                                                    const at::TensorOptions& options) {
  std::vector<at::Tensor>& probes = sets_[tokens];
  if (probes.empty()) {
    for (int64_t l = 0; l < config.layers; ++l) {
      probes.push_back(at::zeros({1, 1}, options).expand({tokens, config.ffn}).detach().requires_grad_());
    }
  }
  for (const at::Tensor& probe : probes) probe.mutable_grad().reset();
  return probes;
}

at::Tensor TakeMass(const at::Tensor& h, const at::Tensor& probe) {
  const at::Tensor mass = (h.to(at::kFloat) * probe.grad().to(at::kFloat)).abs();
  probe.mutable_grad().reset();
  return mass;
}

std::vector<at::Tensor> GradientMass(const RoutedModel& model, const model::Parameters& weights,
                                     const TokenBatch& batch, int64_t chunk, GradientProbes& probes) {
  const std::vector<at::Tensor>& leaves = probes.Take(model.config, batch.Tokens(), weights.embed.options());
  ProbingHook hook(leaves);
  {
    const at::AutoGradMode recording(true);
    model::Parameters frozen = weights;
    for (const model::NamedTensor& t : model::NamedTensors(model.config, frozen)) *t.tensor = t.tensor->detach();
    frozen.head = weights.head.detach();
    const at::Tensor hidden = model::HiddenStates(model.config, frozen, batch.inputs, &hook);
    ChunkedTokenLoss(hidden.flatten(0, 1), frozen.head, batch.targets.flatten(), {}, chunk).objective.backward();
  }
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> mass;
  at::Tensor sum;
  for (size_t l = 0; l < leaves.size(); ++l) {
    mass.push_back(TakeMass(hook.kept[l], leaves[l]));
    const at::Tensor row = mass.back().sum(-1, true);
    sum = sum.defined() ? sum + row : row;
  }
  const at::Tensor scale = static_cast<double>(mass.size()) / sum.clamp_min(1e-30);
  for (at::Tensor& layer : mass) layer *= scale;
  return mass;
}

}  // namespace outrider::moe
