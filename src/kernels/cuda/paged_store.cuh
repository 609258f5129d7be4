#pragma once
// What both forms of attention over pages begin with.

#include <cuda_bf16.h>

#include "kernels/cuda/paged_attention.h"

namespace outrider::kernels::cuda {

using Bf16 = __nv_bfloat16;
constexpr int kPage = kAttentionPageTokens;
constexpr float kNothing = -1e30F;  // maximum of no score; its difference to itself is a number

// One block per row and head of queries, keys or values; a thread turns one plane.
static __global__ void Store(PagedAttention call) {
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y),
            pair = static_cast<int>(threadIdx.x);
  const int half = call.head_dim / 2, all = call.heads + 2 * call.kv_heads;
  auto* from = static_cast<Bf16*>(call.qkv) + (static_cast<int64_t>(row) * all + head) * call.head_dim;
  float a = __bfloat162float(from[pair]), b = __bfloat162float(from[pair + half]);
  if (head < call.heads + call.kv_heads) {
    const float cos = call.cos[row * half + pair], sin = call.sin[row * half + pair];
    const float turned = a * cos - b * sin;
    b = b * cos + a * sin;
    a = turned;
  }
  Bf16* to = from;
  if (head >= call.heads) {
    const bool is_key = head < call.heads + call.kv_heads;
    const int kv = head - call.heads - (is_key ? 0 : call.kv_heads);
    const int position = call.positions[row];
    const int64_t text = call.texts == nullptr ? row : call.texts[row];
    const int64_t page = call.pages[text * call.table + position / kPage];
    to = static_cast<Bf16*>(is_key ? call.keys : call.values) +
         ((page * call.kv_heads + kv) * kPage + position % kPage) * call.head_dim;
  }
  to[pair] = __float2bfloat16(a);
  to[pair + half] = __float2bfloat16(b);
}

static cudaError_t LaunchStore(const PagedAttention& call, cudaStream_t stream) {
  const dim3 all(static_cast<unsigned>(call.rows), static_cast<unsigned>(call.heads + 2 * call.kv_heads));
  Store<<<all, static_cast<unsigned>(call.head_dim / 2), 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace outrider::kernels::cuda
