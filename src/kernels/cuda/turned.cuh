#pragma once
// Where a turned pair of coordinates goes.
#include "kernels/cuda/paged_attention.h"
#include "kernels/cuda/stream.cuh"

namespace outrider::kernels::cuda {

// Where numbers `pair` of a head go, half a head apart, and by what they are turned.
struct TurnedPlace {
  Bf16* to = nullptr;
  float cos = 1, sin = 0;
};

// Head counts queries, then keys, then values.
__device__ __forceinline__ TurnedPlace TurnedPlaceOf(const PagedAttention& call, int row, int head, int pair) {
  TurnedPlace place;
  const int half = call.head_dim / 2, all = call.heads + 2 * call.kv_heads;
  if (head < call.heads + call.kv_heads) {
    place.cos = call.cos[row * half + pair];
    place.sin = call.sin[row * half + pair];
  }
  place.to = static_cast<Bf16*>(call.qkv) + (static_cast<int64_t>(row) * all + head) * call.head_dim;
  if (head >= call.heads) {
    const bool is_key = head < call.heads + call.kv_heads;
    const int kv = head - call.heads - (is_key ? 0 : call.kv_heads);
    const int position = call.positions[row];
    const int64_t page = call.pages[static_cast<int64_t>(row) * call.table + position / kAttentionPageTokens];
    place.to = static_cast<Bf16*>(is_key ? call.keys : call.values) +
               ((page * call.kv_heads + kv) * kAttentionPageTokens + position % kAttentionPageTokens) * call.head_dim;
  }
  place.to += pair;
  return place;
}

__device__ __forceinline__ void StoreTurnedPair(const PagedAttention& call, const TurnedPlace& place, float a,
                                                float b) {
  if (place.cos != 1 || place.sin != 0) {
    const float turned = __fmaf_rn(a, place.cos, -__fmul_rn(b, place.sin));
    b = __fmaf_rn(a, place.sin, __fmul_rn(b, place.cos));
    a = turned;
  }
  place.to[0] = __float2bfloat16(a);
  place.to[call.head_dim / 2] = __float2bfloat16(b);
}

}  // namespace outrider::kernels::cuda
