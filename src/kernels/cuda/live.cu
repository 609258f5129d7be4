// One block per layer: the wanted channels in their stored order.
#include "kernels/cuda/live.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/tied_ffn.h"

namespace outrider::kernels::cuda {
namespace {

constexpr int kWarps = 32;

__global__ void __launch_bounds__(kWarps * 32)
    FindWanted(LiveJob one, const LiveJob* many, const uint8_t* ids, int tokens) {
  __shared__ int counts[kWarps];
  const LiveJob job = many == nullptr ? one : many[blockIdx.x];
  const Live live(job.live, job.channels);
  const int lane = Lane(), warp = Warp();
  const unsigned wanted = __reduce_or_sync(~0U, lane < tokens ? 1U << ids[lane] : 0U);
  const int rows = CeilDiv(job.channels, 32);  // of 32 channels; a warp has some that lie side by side
  const int first = rows * warp / kWarps, last = rows * (warp + 1) / kWarps;
  const auto mask_of = [&](int row) {
    const int channel = row * 32 + lane;
    return __ballot_sync(~0U, channel < job.channels && (job.signatures[channel] & wanted) != 0);
  };
  int count = 0;
#pragma unroll 4
  for (int row = first; row < last; ++row) count += __popc(mask_of(row));
  if (lane == 0) counts[warp] = count;
  __syncthreads();
  int before = 0;
  for (int w = 0; w < warp; ++w) before += counts[w];
  if (warp == kWarps - 1 && lane == 0) *const_cast<int32_t*>(live.count) = before + count;
  auto* list = const_cast<int32_t*>(live.list);
  auto* masks = const_cast<uint16_t*>(live.masks);
#pragma unroll 4
  for (int row = first; row < last; ++row) {
    const unsigned mask = mask_of(row);
    if ((mask >> lane & 1) != 0) list[before + __popc(mask & ((1U << lane) - 1))] = row * 32 + lane;
    if (lane < 2 && row * 32 + lane * kGroup < job.channels)
      masks[row * 2 + lane] = static_cast<uint16_t>(mask >> (lane * kGroup));
    before += __popc(mask);
  }
}

}  // namespace

int64_t LiveBytes(int channels) {
  return 16 + static_cast<int64_t>(CeilDiv(channels, 4)) * 16 +
         static_cast<int64_t>(CeilDiv(channels, kGroup * 8)) * 16;
}

cudaError_t FindLive(const LiveJob* jobs, int count, const uint8_t* ids, int tokens, cudaStream_t stream) {
  if (count < 1 || tokens < 0 || tokens > kDecodeTokensMax) return cudaErrorInvalidValue;
  return Launch(FindWanted, dim3(static_cast<unsigned>(count)), kWarps * 32, stream, LiveJob{}, jobs, ids, tokens);
}

cudaError_t FindLive(const LiveJob& job, const uint8_t* ids, int tokens, cudaStream_t stream) {
  return Launch(FindWanted, dim3(1), kWarps * 32, stream, job, nullptr, ids, tokens);
}

}  // namespace outrider::kernels::cuda
