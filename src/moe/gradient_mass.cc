#include "moe/gradient_mass.h"

#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "base/check.h"
#include "moe/ffn_hooks.h"
#include "moe/losses.h"

namespace outrider::moe {
const std::vector<at::Tensor>& GradientProbes::Take(int64_t layers, std::array<int64_t, 2> shape,
                                                    const at::TensorOptions& options) {
  std::vector<at::Tensor>& probes = sets_[shape[0]];
  if (probes.empty()) {
    for (int64_t l = 0; l < layers; ++l) {
      probes.push_back(at::zeros({1, 1}, options).expand(shape).detach().requires_grad_());
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
  const std::vector<at::Tensor>& leaves =
      probes.Take(model.config.layers, {batch.Tokens(), model.config.ffn}, weights.embed.options());
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

namespace {

constexpr int64_t kRowsTogether = 8;

// gate * up, then the masks of the tokens' experts; the gradient of `leaf` is what of the mass each row keeps. h is
// made again where it is needed, from what any product of gate and up would keep.
class MeasuredProduct : public torch::autograd::Function<MeasuredProduct> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate, const at::Tensor& up,
                            const at::Tensor& masks, const at::Tensor& ids, const at::Tensor& rows,
                            const at::Tensor& leaf) {
    (void)leaf;
    context->save_for_backward({gate, up, masks, ids, rows});
    return (gate * up).mul_(masks.index_select(0, ids));
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1];
    const at::Tensor kept = KeptOf(gate * up, gradients[0], saved[4]);
    const at::Tensor of_h = gradients[0] * saved[2].index_select(0, saved[3]);
    return {of_h * up, of_h * gate, at::Tensor(), at::Tensor(), at::Tensor(), kept};
  }
};

class MeasuringHook : public model::FfnHook {
 public:
  MeasuringHook(const std::vector<at::Tensor>& masks, const std::vector<at::Tensor>& rows,
                const std::vector<at::Tensor>& leaves, at::Tensor ids)
      : masks_(masks), rows_(rows), leaves_(leaves), ids_(std::move(ids)) {}
  at::Tensor OnFactors(int64_t layer, const at::Tensor& gate, const at::Tensor& up) override {
    const auto l = static_cast<size_t>(layer);
    return MeasuredProduct::apply(gate, up, masks_.at(l), ids_, rows_.at(l), leaves_.at(l));
  }
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    OUTRIDER_CHECK(false, "layer ", layer, ": its factors are measured, not ", h.sizes());
    return h;
  }

 private:
  const std::vector<at::Tensor>&masks_, &rows_, &leaves_;
  at::Tensor ids_;
};

}  // namespace

at::Tensor WithTotal(const at::Tensor& masks) {
  const int64_t experts = masks.size(0), rows = (experts / kRowsTogether + 1) * kRowsTogether;
  at::Tensor all = at::zeros({rows, masks.size(1)}, masks.options());
  all.slice(0, 0, experts).copy_(masks);
  all[experts].fill_(1);
  return all;
}

at::Tensor KeptOf(const at::Tensor& h, const at::Tensor& gradient, const at::Tensor& rows) {
  const at::Tensor mass = (h * gradient).abs_();
  // bf16 sums would move a target by as much as half of what experts differ in. Only CUDA has this product.
  if (mass.is_cuda() && mass.scalar_type() != at::kFloat) return at::mm(mass, rows.t(), at::kFloat);
  return at::mm(mass.to(at::kFloat), rows.to(at::kFloat).t());
}

KeptMass::KeptMass(const RoutedModel& model, const RoutedModel::Masking& masking) : model_(model), masking_(masking) {
  OUTRIDER_CHECK(model.Masked() && masking.fill.empty(), "mass is measured behind masks of experts alone");
  for (const at::Tensor& masks : masking.masks) rows_.push_back(WithTotal(masks));
}

KeptMass::~KeptMass() = default;

void KeptMass::Prepare(int64_t tokens) {
  tokens_ = tokens;
  const bool lean = model_.mask_form == MaskForm::kLean;
  const at::Tensor& like = rows_.front();
  const int64_t width = like.size(lean ? 0 : 1);
  probes_.Take(model_.config.layers, {tokens, width}, lean ? like.options().dtype(at::kFloat) : like.options());
}

model::FfnHook& KeptMass::Hook(const at::Tensor& ids) {
  Prepare(ids.size(0));
  const std::vector<at::Tensor>& probes = probes_.Of(tokens_);
  if (model_.mask_form == MaskForm::kLean) {
    masked_ = std::make_unique<MeasuringHook>(masking_.masks, rows_, probes, ids);
    return *masked_;
  }
  masked_ = model_.Hook(masking_, ids);
  probing_ = std::make_unique<ProbingHook>(probes, masked_.get());
  return *probing_;
}

std::pair<at::Tensor, at::Tensor> KeptMass::Sums() {
  const at::NoGradGuard no_grad;
  at::Tensor sum;
  const std::vector<at::Tensor>& probes = probes_.Of(tokens_);
  for (size_t l = 0; l < probes.size(); ++l) {
    const at::Tensor kept = probing_ ? KeptOf(probing_->kept[l], probes[l].grad(), rows_[l]) : probes[l].grad();
    probes[l].mutable_grad().reset();
    sum = sum.defined() ? sum + kept : kept;
  }
  probing_.reset();
  masked_.reset();
  const int64_t experts = model_.masks.experts();
  return {sum.slice(1, 0, experts), sum.slice(1, experts, experts + 1)};
}

}  // namespace outrider::moe
