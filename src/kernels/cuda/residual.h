#pragma once
// The residual stream of a decoding step between two products, with what the next RMS normalization needs: whoever
// changes x also writes x * weight and parts of the sum of its squares, and the next product scales its results.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace outrider::kernels::cuda {

constexpr int kSquaresMax = 1024;

struct Residual {
  void* x = nullptr;                // bf16 [tokens, width]
  void* weighted = nullptr;         // bf16 [tokens, width]: x * next_norm
  float* squares = nullptr;         // [tokens, kSquaresMax]: sums of squares of x, `parts` of them
  const void* next_norm = nullptr;  // bf16 [width], weights of the next normalization
  float eps = 0;
  int width = 0;
};

// Rows of the table as the first residual, with one part of squares.
cudaError_t Embed(const void* table, const int32_t* ids, int tokens, const Residual& to, cudaStream_t stream);

}  // namespace outrider::kernels::cuda
