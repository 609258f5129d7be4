#pragma once
// The forward pass of Llama, Qwen2 and Mistral models. Public operators only, so autograd works as usual and any device
// and dtype does. Arithmetic order is that of transformers: norms and rotary angles in float32.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/config.h"
#include "model/kv_cache.h"
#include "model/parameters.h"

namespace outrider::model {

// Sees, and may change, what flows through a forward pass.
class FfnHook {
 public:
  virtual ~FfnHook() = default;
  // At the start of each pass: ids int64 [B, S], the new tokens only; `past`: tokens already in the cache.
  virtual void OnTokens(const at::Tensor& ids, int64_t past) { (void)ids, (void)past; }
  // x: [B * S, d], what goes into gate and up of `layer`, tokens of one text next to each other. Before OnHidden.
  virtual void OnInput(int64_t layer, const at::Tensor& x) { (void)layer, (void)x; }
  // The two whose product h is: silu(gate x) and up x, both [B * S, D]. Returns what goes into down_proj.
  virtual at::Tensor OnFactors(int64_t layer, const at::Tensor& gate, const at::Tensor& up);
  // h: [B * S, D] = silu(gate x) * up x, tokens of one text next to each other. Returns what goes into down_proj.
  virtual at::Tensor OnHidden(int64_t layer, const at::Tensor& h) = 0;
};

// ids: int64 [B, S], S <= max_positions. Causal; [B, S, d] after the final norm, in the dtype of the weights.
at::Tensor HiddenStates(const Config& config, const Parameters& parameters, const at::Tensor& ids,
                        FfnHook* hook = nullptr);

// The same for tokens that follow those in `cache`, which takes them in.
at::Tensor HiddenStates(const Config& config, const Parameters& parameters, const at::Tensor& ids, KvCache& cache,
                        FfnHook* hook = nullptr);

// hidden: [..., d]; [..., V].
at::Tensor Logits(const Config& config, const Parameters& parameters, const at::Tensor& hidden);

}  // namespace outrider::model
