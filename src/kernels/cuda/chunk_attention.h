#pragma once
// Attention of many tokens of a few texts over keys and values in pages on a CUDA device, with matrix instructions;
// bf16 with fp32 sums. Every pointer is device memory; all work goes onto `stream`, nothing is allocated and nothing
// waits. No torch, no other room.
//
// Keys are taken 64 at a time from positions that are multiples of 64, in ascending order, and what a token does not
// see changes no bit of its sums: the bits of a token depend on its own text, not on how the text was cut into tiles or
// on which pages hold it. They are not those of Attend (paged_attention.h).

#include <cuda_runtime_api.h>

#include <cstdint>

namespace outrider::kernels::cuda {

constexpr int kAttentionTileRows = 64;

struct ChunkAttention {
  void* qkv = nullptr;  // bf16 [rows, (heads + 2 kv_heads) * head_dim]: queries, keys, values; queries turned in place
  const float* cos = nullptr;  // [rows, head_dim / 2]
  const float* sin = nullptr;
  const int32_t* positions = nullptr;  // [rows]
  const int32_t* texts = nullptr;      // [rows], row of `pages`
  const int32_t* pages = nullptr;      // [texts, table]; entry k: the page of positions [16 k, 16 k + 16)
  // [tile_count, 4]: first row, rows (1 to kAttentionTileRows), text, unused; the rows are consecutive tokens of it.
  const int32_t* tiles = nullptr;
  void* keys = nullptr;    // bf16 [pages, kv_heads, 16, head_dim]
  void* values = nullptr;  // as keys
  void* out = nullptr;     // bf16 [rows, heads * head_dim]
  int rows = 0, tile_count = 0, table = 0;
  int heads = 0, kv_heads = 0, head_dim = 0;  // head_dim: 32, 64 or 128
  int window = 0;                             // positions seen, the token's own included; 0: all
  float scale = 1;
};

// Turns queries and keys, writes keys and values into their pages, and mixes the values. All rows are written before
// any is read. Two launches.
cudaError_t AttendChunk(const ChunkAttention& call, cudaStream_t stream);

}  // namespace outrider::kernels::cuda
