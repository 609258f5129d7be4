#pragma once
// How much each channel matters to the loss, to first order: |h_c * dL/dh_c|.

#include <cstdint>
#include <map>
#include <vector>

#include <ATen/core/Tensor.h>

#include "moe/routed_model.h"

namespace outrider::moe {

// Where gradients with respect to h arrive: per layer a leaf of zeros that is added to it. Kept, so that co-executed
// steps meet the same tensors again; each is one zero, repeated. At most one set per number of tokens.
class GradientProbes {
 public:
  // Per layer [tokens, D], without a gradient.
  const std::vector<at::Tensor>& Take(const model::Config& config, int64_t tokens, const at::TensorOptions& options);
  // Those taken last for so many tokens, with what has arrived since.
  const std::vector<at::Tensor>& Of(int64_t tokens) const { return sets_.at(tokens); }

 private:
  std::map<int64_t, std::vector<at::Tensor>> sets_;  // by tokens
};

// |h * gradient| of one layer, [T, D] fp32, from h and what has arrived in its probe, which is empty afterwards.
at::Tensor TakeMass(const at::Tensor& h, const at::Tensor& probe);

// Per layer [B * S, D] fp32 on the device, L the cross-entropy of all next tokens of the batch under the unmasked
// model. A token's values sum to the number of layers, over all layers and channels: layers that matter more have more.
// weights: the model's compute copy. Memory: layers * B * S * D * (4 bytes and two of the compute dtype).
std::vector<at::Tensor> GradientMass(const RoutedModel& model, const model::Parameters& weights,
                                     const TokenBatch& batch, int64_t chunk, GradientProbes& probes);

}  // namespace outrider::moe
