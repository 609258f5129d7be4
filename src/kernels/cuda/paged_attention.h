#pragma once
// Attention of a few tokens over keys and values in pages on a CUDA device, bf16 with fp32 sums. Every pointer is
// device memory; all work goes onto `stream`, nothing is allocated and nothing waits. No torch, no other room.
//
// A token's seen pages are cut into kAttentionParts parts by its own position alone, and all orders are fixed: its
// bits depend on its own text, not on the other rows or on which pages hold it.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/following.h"

namespace outrider::kernels::cuda {

constexpr int kAttentionParts = 32;
constexpr int kAttentionPageTokens = 16;

struct PagedAttention {
  void* qkv = nullptr;         // bf16 [rows, (heads + 2 kv_heads) * head_dim]: queries, keys, values
  const float* cos = nullptr;  // [rows, head_dim / 2]
  const float* sin = nullptr;
  const int32_t* positions = nullptr;  // [rows]
  const int32_t* pages = nullptr;      // [rows, table]; entry k: the page of positions [16 k, 16 k + 16)
  void* keys = nullptr;                // bf16 [pages, kv_heads, kAttentionPageTokens, head_dim]
  void* values = nullptr;              // as keys
  void* out = nullptr;                 // bf16 [rows, heads * head_dim]
  int rows = 0, table = 0;
  int heads = 0, kv_heads = 0, head_dim = 0;  // head_dim: 32, 64 or 128
  int window = 0;                             // positions seen, the token's own included; 0: all
  float scale = 1;
  Following following;
};

// Turns queries in place, turns keys, and writes keys and values into their pages. Two rows must not have the same
// place unless nobody's result is wanted.
cudaError_t StoreTurned(const PagedAttention& call, cudaStream_t stream);

// Mixes the values for turned queries, keys and values that are all in their pages: rows of one text may stand side by
// side. Part of a chain (stream.cuh); positions and pages must be there before the kernel in front of it starts.
cudaError_t Attend(const PagedAttention& call, cudaStream_t stream);

}  // namespace outrider::kernels::cuda
