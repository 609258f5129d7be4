#pragma once
// Attention of many tokens of a few texts over keys and values in pages, with matrix instructions; otherwise as
// paged_attention.h.
//
// Keys are taken 64 at a time from positions that are multiples of 64, in ascending order, and what a token does not
// see changes no bit of its sums: the bits of a token depend on its own text, not on how the text was cut into tiles.
// They are not those of Attend.

#include "kernels/cuda/paged_attention.h"

namespace outrider::kernels::cuda {

constexpr int kAttentionTileRows = 64;

// Each tile: {first row, rows (1 to kAttentionTileRows), text, unused}; its rows are consecutive tokens of that text.
struct AttentionTiles {
  const int32_t* tiles = nullptr;  // [count, 4]
  int count = 0;
};

// `call.texts` is set, `call.scratch` is not used. All rows are written before any is read. Two launches.
cudaError_t AttendChunk(const PagedAttention& call, const AttentionTiles& tiles, cudaStream_t stream);

}  // namespace outrider::kernels::cuda
