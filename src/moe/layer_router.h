#pragma once
// A router in every layer, as usual Mixtures-of-Experts have it: reads the FFN's input, so no choice is known before
// its layer runs. Baselines only; nothing of it is exported.

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "moe/named_tensor.h"

namespace outrider::moe {

class LayerRouter {
 public:
  // logits = weight x + bias, all 0; every token's best expert is used.
  static LayerRouter Linear(int64_t layers, int64_t experts, int64_t hidden, at::Device device);
  // logits = scale * |silu(gate x) * up x| + bias: one FFN channel speaks for each expert (the router of CMoE, arXiv
  // 2502.04416, with a line fitted to it). gate and up [L, N, d], scale and bias [L, N], fp32. The `top` best are used.
  static LayerRouter Gated(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& scale,
                           const at::Tensor& bias, int64_t top);

  // weight, bias, or gate, up, scale, bias. The tensors themselves, not copies.
  const NamedTensors& Parameters() const { return parameters_; }
  int64_t ParameterCount() const;
  int64_t layers() const { return parameters_[0].tensor.size(0); }
  int64_t experts() const { return parameters_[0].tensor.size(1); }
  int64_t top() const { return top_; }

  // x [T, d] -> fp32 [T, N], differentiable in the parameters.
  at::Tensor Logits(int64_t layer, const at::Tensor& x) const;
  // logits [T, N] -> int64 [T, top], best first.
  at::Tensor Choose(const at::Tensor& logits) const;

 private:
  LayerRouter(NamedTensors parameters, int64_t top);
  NamedTensors parameters_;
  int64_t top_;
};

}  // namespace outrider::moe
