#pragma once
// What the refactoring does between the two halves of an FFN: look at h, or mask it.

#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/llama.h"
#include "moe/experts.h"
#include "moe/masks.h"

namespace outrider::moe {

// Shows h of every layer to `look` and passes it on.
class LookingHook : public model::FfnHook {
 public:
  explicit LookingHook(std::function<void(int64_t, const at::Tensor&)> look) : look_(std::move(look)) {}
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    look_(layer, h);
    return h;
  }

 private:
  std::function<void(int64_t, const at::Tensor&)> look_;
};

// h[t] * masks[ids[t]]. Keeps ids and masks for the backward pass, not h.
class MaskRowsFunction : public torch::autograd::Function<MaskRowsFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& h, const at::Tensor& masks,
                            const at::Tensor& ids) {
    context->save_for_backward({masks, ids});
    return h * masks.index_select(0, ids);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    return {gradients[0] * saved[0].index_select(0, saved[1]), at::Tensor(), at::Tensor()};
  }
};

// h [T, D], masks [N, D] in one dtype, ids [T] int64: h[t] * masks[ids[t]]. Both forms compute the same bits.
inline at::Tensor MaskRows(const at::Tensor& h, const at::Tensor& masks, const at::Tensor& ids, MaskForm form) {
  if (form == MaskForm::kLean) return MaskRowsFunction::apply(h, masks, ids);
  return h * masks.index_select(0, ids);
}

// Token t keeps the channels of expert ids[t]; with one expert `ids` may be undefined. masks: per layer [N, D] in the
// dtype of h. fill: empty, or per layer [D], added to the masked h.
class MaskingHook : public model::FfnHook {
 public:
  MaskingHook(std::vector<at::Tensor> masks, std::vector<at::Tensor> fill, at::Tensor ids, MaskForm form)
      : masks_(std::move(masks)), fill_(std::move(fill)), ids_(std::move(ids)), form_(form) {}
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    const auto l = static_cast<size_t>(layer);
    const at::Tensor masked = ids_.defined() ? MaskRows(h, masks_.at(l), ids_, form_) : h * masks_.at(l)[0];
    return fill_.empty() ? masked : masked + fill_[l];
  }

 private:
  std::vector<at::Tensor> masks_, fill_;
  at::Tensor ids_;  // [T] int64
  MaskForm form_;
};

// Keeps h of every layer, and lets gradients with respect to what goes into down_proj arrive in `probes` (see
// GradientProbes). inner: what masks h, may be nullptr.
class ProbingHook : public model::FfnHook {
 public:
  explicit ProbingHook(const std::vector<at::Tensor>& probes, model::FfnHook* inner = nullptr)
      : probes_(probes), inner_(inner) {}
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    kept.push_back(h.detach());
    return (inner_ != nullptr ? inner_->OnHidden(layer, h) : h) + probes_.at(static_cast<size_t>(layer));
  }
  std::vector<at::Tensor> kept;  // per layer, not masked

 private:
  const std::vector<at::Tensor>& probes_;
  model::FfnHook* inner_;
};

// Every token keeps its own `keep` channels with the largest |h_c| * ||Wd[:, c]||_2: what no router could beat that
// decides ahead, for comparison. down: per layer [d, D].
class ContextualHook : public model::FfnHook {
 public:
  ContextualHook(std::vector<at::Tensor> down, int64_t keep) : down_(std::move(down)), keep_(keep) {}
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    const at::Tensor norms = ColumnNorms(down_.at(static_cast<size_t>(layer)));
    const at::Tensor own = std::get<1>((h.detach().abs() * norms).topk(keep_, -1));
    return h * at::zeros_like(h).detach().scatter_(1, own, 1.0);
  }

 private:
  std::vector<at::Tensor> down_;
  int64_t keep_;
};

}  // namespace outrider::moe
