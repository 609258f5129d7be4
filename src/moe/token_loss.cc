#include <algorithm>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "moe/losses.h"

namespace outrider::moe {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Chunk {
  at::Tensor nats, divergence;
  at::Tensor logit_gradient;  // [c, V], undefined unless wanted
};

Chunk LossOfChunk(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& teacher_logits, double weight,
                  bool want_gradient) {
  Chunk out;
  const at::Tensor log_p = at::log_softmax(logits.to(at::kFloat), -1);
  const at::Tensor index = targets.unsqueeze(1);
  out.nats = -log_p.gather(1, index).squeeze(1);
  at::Tensor log_q;
  if (teacher_logits.defined()) {
    log_q = at::log_softmax(teacher_logits.to(at::kFloat), -1);
    out.divergence = (log_q.exp() * (log_q - log_p)).sum();
  }
  if (!want_gradient) return out;
  at::Tensor p = log_p.exp();
  out.logit_gradient = log_q.defined() ? p * (1 + weight) - log_q.exp() * weight : p;
  out.logit_gradient.scatter_add_(1, index, at::full_like(index, -1, out.logit_gradient.options()));
  return out;
}

// Forward makes the gradients of both inputs as well: the logits of a chunk exist once.
class TokenLossFunction : public torch::autograd::Function<TokenLossFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& head,
                               const at::Tensor& targets, const at::Tensor& teacher_hidden,
                               const at::Tensor& teacher_head, double weight, int64_t chunk, bool need_hidden,
                               bool need_head) {
    const at::Tensor hidden_gradient = need_hidden ? at::empty_like(hidden) : at::Tensor();
    const at::Tensor head_gradient =
        need_head ? at::zeros(head.sizes(), head.options().dtype(at::kFloat)) : at::Tensor();
    const at::Tensor nats = at::empty(targets.sizes(), hidden.options().dtype(at::kFloat));
    const at::Tensor divergence = at::zeros({}, nats.options());
    for (int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
      const int64_t end = std::min(begin + chunk, hidden.size(0));
      const at::Tensor rows = hidden.slice(0, begin, end);
      const at::Tensor teacher =
          teacher_hidden.defined() ? teacher_hidden.slice(0, begin, end).matmul(teacher_head.t()) : at::Tensor();
      const Chunk part =
          LossOfChunk(rows.matmul(head.t()), targets.slice(0, begin, end), teacher, weight, need_hidden || need_head);
      nats.slice(0, begin, end).copy_(part.nats);
      if (part.divergence.defined()) divergence.add_(part.divergence);
      if (!part.logit_gradient.defined()) continue;
      const at::Tensor gradient = part.logit_gradient.to(hidden.scalar_type());
      if (need_hidden) hidden_gradient.slice(0, begin, end).copy_(gradient.matmul(head));
      if (need_head) head_gradient.add_(gradient.t().matmul(rows));
    }
    context->save_for_backward({hidden_gradient, head_gradient});
    context->saved_data["dtype"] = static_cast<int64_t>(head.scalar_type());
    context->mark_non_differentiable({nats, divergence});
    return {nats.sum() + divergence * weight, nats, divergence};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto dtype = static_cast<at::ScalarType>(context->saved_data["dtype"].toInt());
    const at::Tensor& scale = gradients[0];
    at::Tensor hidden, head;
    if (saved[0].defined()) hidden = (saved[0] * scale).to(saved[0].scalar_type());
    if (saved[1].defined()) head = (saved[1] * scale).to(dtype);
    return {hidden, head, {}, {}, {}, {}, {}, {}, {}};
  }
};

}  // namespace

TokenLoss ChunkedTokenLoss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
                           const TeacherLogits& teacher, int64_t chunk) {
  OUTRIDER_CHECK(hidden.dim() == 2 && head.dim() == 2 && hidden.size(1) == head.size(1), hidden.sizes(), head.sizes());
  OUTRIDER_CHECK(targets.dim() == 1 && targets.size(0) == hidden.size(0) && chunk >= 1, targets.sizes());
  const bool training = at::GradMode::is_enabled();
  const variable_list out =
      TokenLossFunction::apply(hidden, head, targets, teacher.hidden, teacher.head, teacher.weight, chunk,
                               training && hidden.requires_grad(), training && head.requires_grad());
  return {out[0], out[1], out[2]};
}

}  // namespace outrider::moe
