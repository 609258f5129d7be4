#pragma once
// What the kernels of a decoding step share. They are bound by reading weights, and chained: a kernel starts while its
// predecessor ends (programmatic dependent launch), sends its first loads of weights, and only then waits for results.

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/instructions.cuh"
#include "kernels/cuda/launch.cuh"

namespace outrider::kernels::cuda {

using Bf16 = __nv_bfloat16;

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int Warp() { return static_cast<int>(threadIdx.x) / 32; }

__host__ __device__ constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

}  // namespace outrider::kernels::cuda
