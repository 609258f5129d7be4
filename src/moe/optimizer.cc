#include "moe/optimizer.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "base/check.h"

namespace outrider::moe {

AdamW::AdamW(NamedTensors parameters, const AdamWOptions& options)
    : parameters_(std::move(parameters)), options_(options) {
  for (const NamedTensor& p : parameters_) {
    OUTRIDER_CHECK(p.tensor.scalar_type() == at::kFloat && p.tensor.is_leaf(), p.name, " is no fp32 leaf");
    first_.push_back(at::zeros_like(p.tensor));
    second_.push_back(at::zeros_like(p.tensor));
    steps_.push_back(at::zeros({}, p.tensor.options()));
  }
}

void AdamW::ZeroGradients() {
  for (const NamedTensor& p : parameters_) p.tensor.mutable_grad().reset();
}

base::Error AdamW::NotFinite() const {
  for (const NamedTensor& p : parameters_) {
    const at::Tensor& gradient = p.tensor.grad();
    if (!gradient.defined()) continue;
    const int64_t bad = gradient.isfinite().logical_not().sum().item<int64_t>();
    if (bad > 0) return {"E_NAN", p.name + ": " + std::to_string(bad) + " elements of the gradient are not finite"};
  }
  return {"E_NAN", "the norm of all gradients is not finite, though every gradient is"};
}

base::Result<double> AdamW::Step(double learning_rate) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> weights, gradients, first, second, steps;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor& gradient = parameters_[i].tensor.grad();
    if (!gradient.defined()) continue;
    weights.push_back(parameters_[i].tensor);
    gradients.push_back(gradient);
    first.push_back(first_[i]);
    second.push_back(second_[i]);
    steps.push_back(steps_[i]);
  }
  OUTRIDER_CHECK(!gradients.empty(), "a step without gradients");
  const at::Tensor norm = at::stack(at::_foreach_norm(gradients, 2)).norm();
  const auto value = norm.item<double>();
  if (!std::isfinite(value)) return tl::unexpected(NotFinite());
  // By a tensor, 1 where nothing is clipped: every step has the same operators.
  if (options_.clip_norm > 0) {
    at::_foreach_mul_(gradients, (options_.clip_norm / norm.to(at::kDouble)).clamp_max(1).to(at::kFloat));
  }
  at::_foreach_add_(steps, 1);
  at::_fused_adamw_(weights, gradients, first, second, {}, steps, learning_rate, options_.beta1, options_.beta2,
                    options_.weight_decay, options_.eps, false, false);
  return value;
}

NamedTensors AdamW::State() const {
  NamedTensors state;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const std::string& name = parameters_[i].name;
    state.push_back({name, parameters_[i].tensor.detach()});
    state.push_back({name + ".exp_avg", first_[i]});
    state.push_back({name + ".exp_avg_sq", second_[i]});
    state.push_back({name + ".step", steps_[i]});
  }
  return state;
}

base::Result<void> AdamW::Restore(const NamedTensors& state) {
  const at::NoGradGuard no_grad;
  const NamedTensors mine = State();
  std::vector<at::Tensor> sources;
  for (const NamedTensor& to : mine) {
    const auto from = std::ranges::find(state, to.name, &NamedTensor::name);
    if (from == state.end()) return base::Fail("E_CHECKPOINT", to.name + ": missing");
    if (from->tensor.sizes() != to.tensor.sizes()) return base::Fail("E_CHECKPOINT", to.name + ": of another shape");
    sources.push_back(from->tensor);
  }
  if (state.size() != mine.size()) {
    return base::Fail("E_CHECKPOINT",
                      "found " + std::to_string(state.size()) + " tensors, expected " + std::to_string(mine.size()));
  }
  for (size_t i = 0; i < mine.size(); ++i) mine[i].tensor.copy_(sources[i]);
  return {};
}

}  // namespace outrider::moe
