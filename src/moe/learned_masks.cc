#include "moe/learned_masks.h"

#include <limits>
#include <string>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "moe/select.h"

namespace outrider::moe {
namespace {

constexpr double kDecay = 0.9;
constexpr double kLeast = 1e-30;

}  // namespace

LearnedMasks::LearnedMasks(int64_t experts, int64_t layers, int64_t channels, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  scores_ = at::zeros({layers, experts, channels}, options);
  means_ = at::zeros_like(scores_);
  sinks_ = at::zeros({layers, channels}, options.dtype(at::kByte));
  for (int64_t l = 0; l < layers; ++l) slopes_.push_back(at::zeros({experts, channels}, options).requires_grad_());
}

LearnedMasks::LearnedMasks(const CoverageExperts& start, at::Device device)
    : LearnedMasks(start.masks.experts(), start.masks.layers(), start.masks.channels(), device) {
  const at::NoGradGuard no_grad;
  for (int64_t l = 0; l < scores_.size(0); ++l) {
    for (const int64_t c : start.sinks.at(static_cast<size_t>(l))) sinks_[l][c].fill_(1);
    for (int64_t i = 0; i < scores_.size(1); ++i) {
      scores_[l][i].copy_(at::tensor(start.scores.at(static_cast<size_t>(i)).at(static_cast<size_t>(l)), at::kDouble));
    }
  }
  scores_.div_(Size(scores_));
}

at::Tensor LearnedMasks::Size(const at::Tensor& values) const {
  const at::Tensor counted = at::rsub(sinks_.to(at::kFloat), 1).unsqueeze(1);
  return ((values.abs() * counted).sum(-1, true) / counted.sum(-1, true).clamp_min(1)).clamp_min(kLeast);
}

void LearnedMasks::Step(double rate) {
  const at::NoGradGuard no_grad;
  for (size_t l = 0; l < slopes_.size(); ++l) {
    const at::Tensor mean = means_[static_cast<int64_t>(l)];
    mean.mul_(kDecay);
    if (slopes_[l].grad().defined()) mean.add_(slopes_[l].grad(), 1 - kDecay);
    slopes_[l].mutable_grad().reset();
  }
  scores_.sub_(means_ / Size(means_) * rate);
}

Masks LearnedMasks::Choose(const Masks& masks) const {
  const at::Tensor first = sinks_.to(at::kBool).unsqueeze(1);
  const at::Tensor all =
      scores_.masked_fill(first, std::numeric_limits<double>::infinity()).to(at::kCPU, at::kDouble).contiguous();
  const auto channels = static_cast<size_t>(masks.channels());
  const double* row = all.const_data_ptr<double>();
  Masks chosen(masks.experts(), masks.layers(), masks.channels());
  for (int64_t l = 0; l < masks.layers(); ++l) {
    const std::vector<int64_t> active = masks.Count(l).active;
    for (int64_t i = 0; i < masks.experts(); ++i, row += channels) {
      chosen.SetExpert(l, i, TopChannels({row, channels}, active[static_cast<size_t>(i)]));
    }
  }
  return chosen;
}

NamedTensors LearnedMasks::State() const { return {{"scores", scores_}, {"means", means_}, {"sinks", sinks_}}; }

base::Result<void> LearnedMasks::Restore(const NamedTensors& state) {
  const at::NoGradGuard no_grad;
  for (const NamedTensor& own : State()) {
    const NamedTensor* found = nullptr;
    for (const NamedTensor& t : state) found = t.name == own.name ? &t : found;
    if (found == nullptr || found->tensor.sizes() != own.tensor.sizes()) {
      return base::Fail("E_CHECKPOINT", "learned." + own.name + ": missing or of another shape");
    }
    own.tensor.copy_(found->tensor);
  }
  return {};
}

}  // namespace outrider::moe
