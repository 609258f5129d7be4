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
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
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

// The same, with the gradient of the masks: slopes [N, D] fp32, a leaf of zeros, gets for every channel the sum over
// the tokens of each expert of dL/d(masked h) * h. Keeps h for it. ids undefined: the one mask for all.
class SlopedMaskFunction : public torch::autograd::Function<SlopedMaskFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& h, const at::Tensor& masks,
                            const at::Tensor& ids, const at::Tensor& slopes) {
    context->save_for_backward({h, masks, ids});
    OUTRIDER_CHECK(slopes.sizes() == masks.sizes(), slopes.sizes(), ", expected ", masks.sizes());
    return h * Rows(masks, ids);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &h = saved[0], &masks = saved[1], &ids = saved[2];
    const at::Tensor each = gradients[0].to(at::kFloat) * h.to(at::kFloat);
    // A product and no index_add: sums in one order on a GPU, too.
    const at::Tensor whose =
        ids.defined() ? at::zeros({masks.size(0), h.size(0)}, each.options()).scatter_(0, ids.unsqueeze(0), 1.0)
                      : at::ones({1, h.size(0)}, each.options());
    return {gradients[0] * Rows(masks, ids), at::Tensor(), at::Tensor(), whose.matmul(each)};
  }

 private:
  static at::Tensor Rows(const at::Tensor& masks, const at::Tensor& ids) {
    return ids.defined() ? masks.index_select(0, ids) : masks[0];
  }
};

// h [T, D], masks [N, D] in one dtype, ids [T] int64: h[t] * masks[ids[t]]. Both forms compute the same bits.
inline at::Tensor MaskRows(const at::Tensor& h, const at::Tensor& masks, const at::Tensor& ids, MaskForm form) {
  if (form == MaskForm::kLean) return MaskRowsFunction::apply(h, masks, ids);
  return h * masks.index_select(0, ids);
}

// Token t keeps the channels of expert ids[t]; with one expert `ids` may be undefined. masks: per layer [N, D] in the
// dtype of h. fill: empty, or per layer [D], added to the masked h. slopes: empty, or per layer see SlopedMaskFunction.
class MaskingHook : public model::FfnHook {
 public:
  MaskingHook(std::vector<at::Tensor> masks, std::vector<at::Tensor> fill, at::Tensor ids, MaskForm form,
              std::vector<at::Tensor> slopes = {})
      : masks_(std::move(masks)),
        fill_(std::move(fill)),
        slopes_(std::move(slopes)),
        ids_(std::move(ids)),
        form_(form) {}
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    const auto l = static_cast<size_t>(layer);
    const at::Tensor masked = Masked(h, l);
    return fill_.empty() ? masked : masked + fill_[l];
  }

 private:
  at::Tensor Masked(const at::Tensor& h, size_t layer) const {
    if (!slopes_.empty()) return SlopedMaskFunction::apply(h, masks_.at(layer), ids_, slopes_.at(layer));
    return ids_.defined() ? MaskRows(h, masks_.at(layer), ids_, form_) : h * masks_.at(layer)[0];
  }

  std::vector<at::Tensor> masks_, fill_, slopes_;
  at::Tensor ids_;  // [T] int64
  MaskForm form_;
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
