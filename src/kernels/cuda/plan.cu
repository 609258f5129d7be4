// Tokens sorted by expert: one block, a stable counting sort.
#include "kernels/cuda/tied_ffn.h"

namespace outrider::kernels::cuda {
namespace {

constexpr int kThreads = 1024;

// before[e][thread]: first the thread's tokens of expert e, then those of all threads before it.
__device__ void ScanExpert(uint16_t* counts, int32_t* total) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kEach = kThreads / 32;
  int sum = 0;
  for (int i = 0; i < kEach; ++i) sum += counts[lane * kEach + i];
  int before = sum;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0U, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) *total = before;
  before -= sum;
  for (int i = 0; i < kEach; ++i) {
    const int count = counts[lane * kEach + i];
    counts[lane * kEach + i] = static_cast<uint16_t>(before);
    before += count;
  }
}

__global__ void __launch_bounds__(kThreads) SortTokens(const uint8_t* ids, int tokens, int experts, Plan plan) {
  __shared__ uint16_t before[kExpertsMax][kThreads];
  __shared__ int32_t at[kExpertsMax + 1];
  const int thread = static_cast<int>(threadIdx.x), each = (tokens + kThreads - 1) / kThreads;
  const int first = min(thread * each, tokens), last = min(first + each, tokens);
  for (int e = 0; e < experts; ++e) before[e][thread] = 0;
  for (int t = first; t < last; ++t) ++before[ids[t]][thread];
  __syncthreads();
  if (thread / 32 < experts) ScanExpert(before[thread / 32], &at[thread / 32 + 1]);
  __syncthreads();
  if (thread == 0) {
    at[0] = 0;
    for (int e = 1; e <= experts; ++e) at[e] += at[e - 1];
  }
  __syncthreads();
  if (thread <= experts) plan.order_at[thread] = at[thread];
  for (int t = first; t < last; ++t) {
    const int e = ids[t];
    plan.order[at[e] + before[e][thread]++] = t;
  }
}

}  // namespace

cudaError_t MakePlan(const uint8_t* ids, int tokens, int experts, const Plan& plan, cudaStream_t stream) {
  constexpr int kTokensMax = 65'535;  // counts are 16 bits wide
  if (tokens < 0 || tokens > kTokensMax || experts < 1 || experts > kExpertsMax) return cudaErrorInvalidValue;
  SortTokens<<<1, kThreads, 0, stream>>>(ids, tokens, experts, plan);
  return cudaGetLastError();
}

}  // namespace outrider::kernels::cuda
