#pragma once
// AdamW over fp32 master weights, with clipping by the norm of all gradients.

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "base/result.h"
#include "moe/named_tensor.h"

namespace outrider::moe {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0.01;
  double clip_norm = 1.0;  // 0: no clipping
};

class AdamW {
 public:
  // The tensors are updated in place; each must be an fp32 leaf. Moments start at 0.
  AdamW(NamedTensors parameters, const AdamWOptions& options);

  const NamedTensors& parameters() const { return parameters_; }
  void ZeroGradients();
  // One step with the gradients that backward passes left. Returns their norm before clipping. Code E_NAN: the norm is
  // not finite; names the first parameter whose gradient is not, and nothing was changed.
  base::Result<double> Step(double learning_rate);

  // <name>, <name>.exp_avg, <name>.exp_avg_sq and <name>.step per parameter: everything a resumed run needs. Not
  // copies.
  NamedTensors State() const;
  // Copies a State() back. Code E_CHECKPOINT: missing, extra or of another shape; nothing was changed.
  base::Result<void> Restore(const NamedTensors& state);

 private:
  base::Error NotFinite() const;

  NamedTensors parameters_;
  AdamWOptions options_;
  std::vector<at::Tensor> first_, second_, steps_;
};

}  // namespace outrider::moe
