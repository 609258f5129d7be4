#include "kernels/cuda/residual.cuh"

namespace outrider::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A block per token. The first kernel of a chain: what comes behind it starts when it ends.
__global__ void __launch_bounds__(kThreads) CopyRows(const Bf16* table, const int32_t* ids, Residual to) {
  __shared__ float sums[kThreads / 32];
  const int token = static_cast<int>(blockIdx.x);
  const Bf16* from = table + static_cast<int64_t>(ids[token]) * to.width;
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < to.width; i += kThreads)
    sum += StoreResidual(to, token, i, __bfloat162float(from[i]), static_cast<const Bf16*>(to.next_norm)[i]);
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0U, sum, distance);
  if (Lane() == 0) sums[Warp()] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) sum += sums[w];
  to.squares[token * kSquaresMax] = sum;
}

}  // namespace

cudaError_t Embed(const void* table, const int32_t* ids, int tokens, const Residual& to, cudaStream_t stream) {
  if (tokens < 1 || to.width < 1) return cudaErrorInvalidValue;
  return Launch(CopyRows, dim3(static_cast<unsigned>(tokens)), kThreads, stream, static_cast<const Bf16*>(table), ids,
                to);
}

}  // namespace outrider::kernels::cuda
