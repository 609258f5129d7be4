#include "moe/losses.h"

#include <algorithm>
#include <array>
#include <numeric>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "base/check.h"

namespace outrider::moe {

at::Tensor MaskMatrix(const Masks& masks, int64_t layer, at::ScalarType dtype, at::Device device) {
  at::Tensor matrix = at::zeros({masks.experts(), masks.channels()}, at::kFloat);
  auto rows = matrix.accessor<float, 2>();
  const std::span<const Signature> signatures = masks.Layer(layer);
  for (int64_t i = 0; i < masks.experts(); ++i) {
    for (int64_t c = 0; c < masks.channels(); ++c) {
      rows[i][c] = static_cast<float>((signatures[static_cast<size_t>(c)] >> i) & 1);
    }
  }
  return matrix.to(device, dtype);
}

at::Tensor ActivationMass(const at::Tensor& h, const at::Tensor& column_norms) {
  const at::Tensor mass = h.to(at::kFloat).abs().mul(column_norms);
  return mass / mass.sum(-1, true).clamp_min(1e-30);
}

RouterTargets::RouterTargets(RouterLoss form, const Masks& masks, const std::vector<at::Tensor>& column_norms,
                             at::Device device)
    : form_(form), layers_(masks.layers()), experts_(masks.experts()), column_norms_(column_norms) {
  for (int64_t l = 0; l < layers_; ++l) {
    const LayerCounts counts = masks.Count(l);
    const int64_t all = std::accumulate(counts.active.begin(), counts.active.end(), int64_t{0});
    active_.push_back(all / experts_);
    specific_count_.push_back(all / experts_ - counts.permanent);
    masks_.push_back(MaskMatrix(masks, l, at::kFloat, device));
    const at::Tensor permanent = std::get<0>(masks_.back().min(0, true));
    specific_.push_back(masks_.back() - permanent);
  }
}

// log softmax of the overlap counts with the token's own channels.
at::Tensor RouterTargets::PaperTerm(int64_t layer, const at::Tensor& h) const {
  const auto at_layer = static_cast<size_t>(layer);
  const at::Tensor own = std::get<1>(h.abs().topk(active_[at_layer], -1));
  const at::Tensor dense = at::zeros(h.sizes(), masks_[at_layer].options()).scatter_(1, own, 1.0);
  return at::log_softmax(dense.matmul(masks_[at_layer].t()), -1);
}

// The distribution that hard and soft term of one layer together are a cross-entropy to.
at::Tensor RouterTargets::CodeTerm(int64_t layer, const at::Tensor& h) const {
  const auto at_layer = static_cast<size_t>(layer);
  const int64_t n = specific_count_[at_layer];
  OUTRIDER_CHECK(n >= 2, "layer ", layer, ": ", n, " channels beside the permanent ones");
  const at::Tensor ranked = std::get<1>((form_ == RouterLoss::kCode ? h : h.abs()).topk(n - 1, -1));
  at::Tensor weight = at::zeros({n - 1}, masks_[at_layer].options());
  for (const int64_t q : {n - 1, 4 * n / 5, 3 * n / 5, 2 * n / 5, n / 5}) weight.slice(0, 0, q).add_(1.0 / (3.0 * n));
  const at::Tensor rows = at::zeros(h.sizes(), weight.options()).scatter_(1, ranked, weight.expand_as(ranked));
  at::Tensor scores = rows.matmul(specific_[at_layer].t());
  scores = (scores - scores.mean(-1, true)) * 10;
  const at::Tensor hard = at::zeros_like(scores).scatter_(1, scores.argmax(-1, true), 1.0);
  constexpr double kHard = 0.75, kSmoothing = 0.5;
  const at::Tensor smoothed = hard * (1 - kSmoothing) + kSmoothing / static_cast<double>(experts_);
  return smoothed * kHard + at::softmax(scores, -1) * (1 - kHard);
}

void RouterTargets::Add(int64_t layer, const at::Tensor& activations) {
  const at::Tensor h = activations.detach().to(at::kFloat);
  if (form_ == RouterLoss::kCoverage)
    return AddMass(layer, ActivationMass(h, column_norms_.at(static_cast<size_t>(layer))));
  const at::Tensor term = form_ == RouterLoss::kPaper ? PaperTerm(layer, h) : CodeTerm(layer, h);
  sum_ = sum_.defined() ? sum_ + term : term;
}

void RouterTargets::AddMass(int64_t layer, const at::Tensor& mass) {
  OUTRIDER_CHECK(form_ == RouterLoss::kCoverage, "mass is for the coverage loss");
  const at::Tensor kept = mass.matmul(masks_[static_cast<size_t>(layer)].t()) / static_cast<double>(layers_);
  sum_ = sum_.defined() ? sum_ + kept : kept;
}

void RouterTargets::SetKept(const at::Tensor& kept, const at::Tensor& total) {
  OUTRIDER_CHECK(form_ == RouterLoss::kCoverage && kept.size(1) == experts_, "mass kept by ", kept.size(1), " experts");
  sum_ = kept / total.clamp_min(1e-30);
}

at::Tensor RouterTargets::Coverage() const {
  OUTRIDER_CHECK(form_ == RouterLoss::kCoverage && sum_.defined(), "no coverage was collected");
  return sum_;
}

void RouterTargets::Smooth(int64_t sequence, int64_t window) {
  OUTRIDER_CHECK(form_ == RouterLoss::kCoverage && sum_.size(0) % sequence == 0, sum_.size(0), " tokens");
  const at::Tensor texts = sum_.view({-1, sequence, experts_});
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < sequence; begin += window) {
    const at::Tensor part = texts.slice(1, begin, std::min(begin + window, sequence));
    parts.push_back(part.mean(1, true).expand_as(part));
  }
  sum_ = at::cat(parts, 1).reshape({-1, experts_});
}

at::Tensor RouterTargets::Loss(const at::Tensor& z) const {
  OUTRIDER_CHECK(sum_.defined() && z.sizes() == sum_.sizes(), "logits ", z.sizes(), ", expected those of the targets");
  const at::Tensor log_p = at::log_softmax(z, -1);
  if (form_ == RouterLoss::kPaper) {
    const at::Tensor p = log_p.exp();
    return (p * (log_p * static_cast<double>(layers_) - sum_)).sum(-1).mean();
  }
  const at::Tensor target = form_ == RouterLoss::kCoverage ? at::softmax(sum_ * kCoverageSharpness, -1) : sum_;
  return -(target * log_p).sum(-1).mean();
}

at::Tensor BalanceLoss(const at::Tensor& z) {
  const int64_t experts = z.size(-1);
  const at::Tensor p = at::softmax(z, -1).view({-1, experts});
  const at::Tensor used = at::bincount(z.detach().argmax(-1).flatten(), {}, experts).to(at::kFloat);
  return (used / static_cast<double>(p.size(0)) * p.mean(0)).sum() * static_cast<double>(experts);
}

at::Tensor StayLoss(const at::Tensor& z) {
  const at::Tensor p = at::softmax(z, -1);
  return at::rsub((p.slice(1, 1) * p.slice(1, 0, -1)).sum(-1).mean(), 1);
}

namespace {

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
  out.logit_gradient.scatter_(1, index, out.logit_gradient.gather(1, index) - 1);  // one per row: no order of sums
  return out;
}

// Scalar whose gradient with respect to `input` is `gradient`, exactly.
at::Tensor Objective(const at::Tensor& input, const at::Tensor& gradient) { return (input * gradient).sum(); }

}  // namespace

TokenLoss ChunkedTokenLoss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
                           const TeacherLogits& teacher, int64_t chunk, double scale) {
  OUTRIDER_CHECK(hidden.dim() == 2 && head.dim() == 2 && hidden.size(1) == head.size(1), hidden.sizes(), head.sizes());
  OUTRIDER_CHECK(targets.dim() == 1 && targets.size(0) == hidden.size(0) && chunk >= 1, targets.sizes());
  const bool training = at::GradMode::is_enabled();
  const bool need_hidden = training && hidden.requires_grad(), need_head = training && head.requires_grad();
  TokenLoss loss;
  at::Tensor hidden_gradient, head_gradient;
  {
    const at::NoGradGuard no_grad;
    if (need_hidden) hidden_gradient = at::empty_like(hidden);
    if (need_head) head_gradient = at::zeros(head.sizes(), head.options().dtype(at::kFloat));
    loss.nats = at::empty(targets.sizes(), hidden.options().dtype(at::kFloat));
    loss.divergence = at::zeros({}, loss.nats.options());
    for (int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
      const int64_t end = std::min(begin + chunk, hidden.size(0));
      const at::Tensor rows = hidden.slice(0, begin, end);
      const at::Tensor teacher_logits =
          teacher.hidden.defined() ? teacher.hidden.slice(0, begin, end).matmul(teacher.head.t()) : at::Tensor();
      const Chunk part = LossOfChunk(rows.matmul(head.t()), targets.slice(0, begin, end), teacher_logits,
                                     teacher.weight, need_hidden || need_head);
      loss.nats.slice(0, begin, end).copy_(part.nats);
      if (part.divergence.defined()) loss.divergence.add_(part.divergence);
      if (!part.logit_gradient.defined()) continue;
      const at::Tensor gradient = part.logit_gradient.to(hidden.scalar_type());
      if (need_hidden) hidden_gradient.slice(0, begin, end).copy_(gradient.matmul(head));
      if (need_head) head_gradient.add_(gradient.t().matmul(rows));
    }
    loss.total = loss.nats.sum() + loss.divergence * teacher.weight;
    if (!need_hidden && !need_head) return loss;
    const at::Tensor factor = at::full({}, scale, loss.nats.options());
    if (need_hidden) hidden_gradient = (hidden_gradient * factor).to(hidden.scalar_type());
    if (need_head) head_gradient = (head_gradient * factor).to(head.scalar_type());
  }
  if (need_hidden) loss.objective = Objective(hidden, hidden_gradient);
  if (need_head) {
    const at::Tensor of_head = Objective(head, head_gradient);
    loss.objective = loss.objective.defined() ? loss.objective + of_head : of_head;
  }
  return loss;
}

}  // namespace outrider::moe
