#pragma once
// Masks that the loss moves: a score per expert, layer and channel, of which each expert keeps the highest.

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "base/result.h"
#include "moe/experts.h"
#include "moe/masks.h"
#include "moe/named_tensor.h"

namespace outrider::moe {

class LearnedMasks {
 public:
  // Scores start at what `start` chose by, every row divided by its mean. A row is one expert's channels of a layer;
  // means leave sinks out.
  LearnedMasks(const CoverageExperts& start, at::Device device);
  // All scores 0, to be restored.
  LearnedMasks(int64_t experts, int64_t layers, int64_t channels, at::Device device);

  // Per layer [N, D] fp32 leaves of zeros. Their gradients, summed over a step, are dL/d(mask) of every channel.
  const std::vector<at::Tensor>& Slopes() const { return slopes_; }
  // Takes the gradients: mean = 0.9 mean + 0.1 gradient, score -= rate * mean / (mean of |mean| over the row).
  void Step(double rate);
  // The channels with the highest scores, as many as `masks` has of each expert and layer; sinks are in every expert.
  Masks Choose(const Masks& masks) const;

  // "scores", "means" [L, N, D] fp32 and "sinks" [L, D] uint8. Not copies.
  NamedTensors State() const;
  // Code E_CHECKPOINT: a tensor is missing or has another shape.
  base::Result<void> Restore(const NamedTensors& state);

 private:
  // [L, N, 1]: mean of |values| [L, N, D] over what is no sink.
  at::Tensor Size(const at::Tensor& values) const;

  at::Tensor scores_, means_, sinks_;
  std::vector<at::Tensor> slopes_;
};

}  // namespace outrider::moe
