#pragma once
// Accumulators of a warpgroup (see multiply.cuh) as bf16 in device memory, 16 bytes a lane.

#include <cuda_bf16.h>

#include <cstdint>

namespace outrider::kernels::cuda {

__device__ __forceinline__ uint32_t Packed(float a, float b) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(both);
}

// Row of the tile that a thread of warpgroup `group` has in half `half` of its accumulators.
__device__ __forceinline__ int RowOf(int group, int half) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  return group * 64 + thread / 32 * 16 + half * 8 + thread % 32 / 4;
}

// v[i] of lane l of four becomes v[l] of lane i.
__device__ __forceinline__ void TransposeFour(uint32_t (&v)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool high = (threadIdx.x & bit) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t &a = v[bit == 1 ? 2 * i : i], &b = v[(bit == 1 ? 2 * i : i) + bit];
      const uint32_t other = __shfl_xor_sync(~0U, high ? a : b, bit);
      (high ? a : b) = other;
    }
  }
}

// Four lanes have columns 2 l and 2 l + 1 of four blocks of 8 in v[0] to v[3]; each stores a block of `row`.
__device__ __forceinline__ void StorePairs(uint32_t (&v)[4], __nv_bfloat16* row, bool valid) {
  TransposeFour(v);
  if (valid) *reinterpret_cast<uint4*>(row + 8 * (threadIdx.x % 4)) = make_uint4(v[0], v[1], v[2], v[3]);
}

// The same where they have columns l and l + 4 of each block.
__device__ __forceinline__ void StoreFours(uint32_t (&v)[4], __nv_bfloat16* row, bool valid) {
  TransposeFour(v);
  const uint4 eight = make_uint4(__byte_perm(v[0], v[1], 0x5410), __byte_perm(v[2], v[3], 0x5410),
                                 __byte_perm(v[0], v[1], 0x7632), __byte_perm(v[2], v[3], 0x7632));
  if (valid) *reinterpret_cast<uint4*>(row + 8 * (threadIdx.x % 4)) = eight;
}

}  // namespace outrider::kernels::cuda
