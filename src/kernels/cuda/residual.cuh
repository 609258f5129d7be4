#pragma once
#include "kernels/cuda/residual.h"
#include "kernels/cuda/stream.cuh"

namespace outrider::kernels::cuda {

// Sums of squares of the tokens of a product, `parts` of each; 0 parts: results are not scaled.
struct Squares {
  const float* sums = nullptr;  // [tokens, kSquaresMax]
  int parts = 0;
  int width = 0;
  float eps = 0;

  // 1 / root mean square of each token. A warp has a token: lanes take every 32nd part, then join in a fixed order.
  __device__ __forceinline__ void FindScales(int tokens, float* scales) const {
    if (parts == 0) return;
    for (int token = Warp(); token < tokens; token += static_cast<int>(blockDim.x) / 32) {
      float sum = 0;
#pragma unroll 8
      for (int p = Lane(); p < parts; p += 32) sum += sums[token * kSquaresMax + p];
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0U, sum, distance);
      if (Lane() == 0) scales[token] = rsqrtf(sum / static_cast<float>(width) + eps);
    }
  }
};

// Writes number `at` of a token's new residual; returns its square.
__device__ __forceinline__ float StoreResidual(const Residual& to, int token, int at, float value) {
  const int64_t place = static_cast<int64_t>(token) * to.width + at;
  const Bf16 rounded = __float2bfloat16(value);
  static_cast<Bf16*>(to.x)[place] = rounded;
  static_cast<Bf16*>(to.weighted)[place] = __hmul(rounded, static_cast<const Bf16*>(to.next_norm)[at]);
  const float x = __bfloat162float(rounded);
  return x * x;
}

}  // namespace outrider::kernels::cuda
