#include "kernels/cuda/likeliest.h"

#include <cfloat>
#include <cmath>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/stream.cuh"

namespace outrider::kernels::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kNone = 0x7fffffff;

struct Found {
  float logit;
  int id;       // kNone: of no number yet
  bool finite;  // all numbers so far
};

__device__ __forceinline__ Found Better(const Found& a, const Found& b) {
  const bool second = b.logit > a.logit || (b.logit == a.logit && b.id < a.id);
  return {second ? b.logit : a.logit, second ? b.id : a.id, a.finite && b.finite};
}

__device__ __forceinline__ Found BetterOfWarp(Found found) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const Found other = {__shfl_xor_sync(~0U, found.logit, distance), __shfl_xor_sync(~0U, found.id, distance),
                         __shfl_xor_sync(~0U, static_cast<int>(found.finite), distance) != 0};
    found = Better(found, other);
  }
  return found;
}

// A block per row.
__global__ void __launch_bounds__(kThreads) Likeliest(const float* logits, int vocab, int64_t* best) {
  __shared__ float warp_logits[kThreads / 32];
  __shared__ int warp_ids[kThreads / 32], warp_finite[kThreads / 32];
  const float* row = logits + static_cast<int64_t>(blockIdx.x) * vocab;
  Found found = {-INFINITY, kNone, true};
  for (int id = static_cast<int>(threadIdx.x); id < vocab; id += kThreads)
    found = Better(found, {row[id], id, fabsf(row[id]) <= FLT_MAX});
  found = BetterOfWarp(found);
  if (Lane() == 0) warp_logits[Warp()] = found.logit, warp_ids[Warp()] = found.id, warp_finite[Warp()] = found.finite;
  __syncthreads();
  if (Warp() != 0) return;
  found = BetterOfWarp({warp_logits[Lane()], warp_ids[Lane()], warp_finite[Lane()] != 0});
  if (Lane() == 0) best[blockIdx.x] = found.finite ? found.id : -1;
}

}  // namespace

cudaError_t FindLikeliest(const float* logits, int rows, int vocab, int64_t* best, cudaStream_t stream) {
  if (rows < 1 || vocab < 1) return cudaErrorInvalidValue;
  return Launch(Likeliest, dim3(static_cast<unsigned>(rows)), kThreads, stream, logits, vocab, best);
}

}  // namespace outrider::kernels::cuda
