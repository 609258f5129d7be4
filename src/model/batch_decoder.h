#pragma once
// One decoding step of many texts at once, each at a position of its own. Keys and values lie in slots that all texts
// fill together, and each text sees the slots that are named; so texts may begin and end at any time (text_rows.h).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/parameters.h"

namespace outrider::model {

class BatchDecoder {
 public:
  // Holds a second copy of all layers, in a form that needs fewer kernels, and a cache of `slots` tokens per text.
  BatchDecoder(const Config& config, const Parameters& parameters, int64_t texts, int64_t slots);

  // ids, positions: int64 [B] on the device; the tokens' keys and values go into `slot`. seen: [B, slots] in the dtype
  // of the weights, 0 where the text sees the slot and -infinity elsewhere; only the first `used` slots are looked at.
  // Logits [B, V] of what comes next.
  at::Tensor Step(const at::Tensor& ids, const at::Tensor& positions, int64_t slot, const at::Tensor& seen,
                  int64_t used);

 private:
  struct FusedLayer {
    at::Tensor attn_norm, qkv, qkv_bias, o, o_bias, ffn_norm, gate_up, gate_up_bias, down, down_bias;
    at::Tensor cache;  // [B, 2 * kv_heads, slots, head_dim]: keys, then values
  };
  at::Tensor Attention(FusedLayer& layer, const at::Tensor& x, int64_t slot, const at::Tensor& seen, int64_t used);
  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) const;

  Config config_;
  at::Tensor embed_, norm_, head_;
  std::vector<FusedLayer> layers_;
  at::Tensor cos_table_, sin_table_;  // [positions, head_dim], the sign of the turned half in the sine
  at::Tensor cos_, sin_;              // of this step, [B, heads + 2 * kv_heads, head_dim]; values are not turned
};

}  // namespace outrider::model
