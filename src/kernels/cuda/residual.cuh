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

  // 1 / root mean square of each token. A warp has kTogether tokens, whose loads are under way together: lanes take
  // every 32nd part, then join in a fixed order.
  template <int kTogether>
  __device__ __forceinline__ void FindScales(int tokens, float* scales) const {
    if (parts == 0) return;
    const int warps = static_cast<int>(blockDim.x) / 32;
    float totals[kTogether] = {};
#pragma unroll 4
    for (int p = Lane(); p < parts; p += 32) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int token = min(i * warps + Warp(), tokens - 1);  // the last one's again where there is none
        totals[i] += sums[token * kSquaresMax + p];
      }
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int token = i * warps + Warp();
      for (int distance = 16; distance > 0; distance /= 2) totals[i] += __shfl_xor_sync(~0U, totals[i], distance);
      if (Lane() == 0 && token < tokens) scales[token] = rsqrtf(totals[i] / static_cast<float>(width) + eps);
    }
  }
};

// What StoreResidual needs of memory: to be fetched before the sum is there.
struct Before {
  float x = 0;  // the residual so far
  Bf16 weight;  // of the next normalization
};

__device__ __forceinline__ Before FetchResidual(const Residual& from, int token, int at) {
  const int64_t place = static_cast<int64_t>(token) * from.width + at;
  return {__bfloat162float(static_cast<const Bf16*>(from.x)[place]), static_cast<const Bf16*>(from.next_norm)[at]};
}

// Writes number `at` of a token's new residual; returns its square.
__device__ __forceinline__ float StoreResidual(const Residual& to, int token, int at, float value, Bf16 weight) {
  const int64_t place = static_cast<int64_t>(token) * to.width + at;
  const Bf16 rounded = __float2bfloat16(value);
  static_cast<Bf16*>(to.x)[place] = rounded;
  static_cast<Bf16*>(to.weighted)[place] = __hmul(rounded, weight);
  const float x = __bfloat162float(rounded);
  return __fmul_rn(x, x);
}

}  // namespace outrider::kernels::cuda
