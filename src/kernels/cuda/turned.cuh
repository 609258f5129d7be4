#pragma once
// Where a turned pair of coordinates goes.
#include "kernels/cuda/paged_attention.h"
#include "kernels/cuda/stream.cuh"

namespace outrider::kernels::cuda {

// Head counts queries, then keys, then values; pair: numbers a and b of it, half a head apart.
__device__ __forceinline__ void StoreTurnedPair(const PagedAttention& call, int row, int head, int pair, float a,
                                                float b) {
  const int half = call.head_dim / 2;
  if (head < call.heads + call.kv_heads) {
    const float cos = call.cos[row * half + pair], sin = call.sin[row * half + pair];
    const float turned = a * cos - b * sin;
    b = b * cos + a * sin;
    a = turned;
  }
  const int all = call.heads + 2 * call.kv_heads;
  Bf16* to = static_cast<Bf16*>(call.qkv) + (static_cast<int64_t>(row) * all + head) * call.head_dim;
  if (head >= call.heads) {
    const bool is_key = head < call.heads + call.kv_heads;
    const int kv = head - call.heads - (is_key ? 0 : call.kv_heads);
    const int position = call.positions[row];
    const int64_t page = call.pages[static_cast<int64_t>(row) * call.table + position / kAttentionPageTokens];
    to = static_cast<Bf16*>(is_key ? call.keys : call.values) +
         ((page * call.kv_heads + kv) * kAttentionPageTokens + position % kAttentionPageTokens) * call.head_dim;
  }
  to[pair] = __float2bfloat16(a);
  to[pair + half] = __float2bfloat16(b);
}

}  // namespace outrider::kernels::cuda
