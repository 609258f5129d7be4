#pragma once
// The products of a decoding step beside the FFN on a CUDA device (sm_90a), bf16 with fp32 sums, for at most
// kDecodeTokensMax tokens. Every pointer is device memory; all work goes onto `stream` as part of a chain (stream.cuh),
// nothing is allocated and nothing waits. A token's bits do not depend on the other tokens.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/paged_attention.h"
#include "kernels/cuda/residual.h"

namespace outrider::kernels::cuda {

struct Projection {
  const void* weight = nullptr;  // bf16 [rows, depth]
  const void* bias = nullptr;    // bf16 [rows] or null
  const void* x = nullptr;       // bf16 [tokens, depth]; ProjectQkv, ProjectLogits: residual.weighted
  int squares = 0;               // ProjectQkv, ProjectLogits: parts of residual.squares
  Residual residual;
  int rows = 0, depth = 0;  // depth: a multiple of 32
  int tokens = 0;
  int multiprocessors = 0;
  Following following;
};

// Queries, keys and values of the normalized residual; turns queries and keys, and writes keys and values into their
// pages: what StoreTurned does. to.qkv gets the queries.
cudaError_t ProjectQkv(const Projection& call, const PagedAttention& to, cudaStream_t stream);

// Adds the product with x to the residual, and leaves ProjectSquares(rows) parts of its squares.
cudaError_t ProjectAndAdd(const Projection& call, cudaStream_t stream);
int ProjectSquares(int rows);

// What to send for in front of them, on as many multiprocessors.
Following FollowingQkv(const void* weight, int depth, const PagedAttention& to, int multiprocessors);
Following FollowingRows(const void* weight, int rows, int depth, int multiprocessors);

// logits fp32 [tokens, rows] of the normalized residual.
cudaError_t ProjectLogits(const Projection& call, float* logits, cudaStream_t stream);

}  // namespace outrider::kernels::cuda
