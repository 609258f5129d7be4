#pragma once
// Copies of the weights of listed channels into a stage, by the eight lanes that have eight channels of the list.

#include "kernels/cuda/tensor_copy.cuh"
#include "kernels/cuda/tied_ffn.h"

namespace outrider::kernels::cuda {

// The list's channel, or past its end one past all of them, whose numbers are read as zeros.
__device__ __forceinline__ int ChannelAt(const Layer& layer, int at, int end) {
  return at < end ? layer.lists[at] : layer.channels + static_cast<int>(threadIdx.x) % 8;
}

// Eight channels fall into runs that lie together, and those into pieces of 8, 4, 2 or 1: log2 of the piece that starts
// at this lane, or -1. One copy brings one piece.
__device__ __forceinline__ int PieceAt(int channel) {
  const int lane = static_cast<int>(threadIdx.x) % 32, eight = lane & ~7, row = lane % 8;
  const int before = __shfl_up_sync(~0U, channel, 1);
  const uint32_t starts = __ballot_sync(~0U, row == 0 || channel != before + 1) >> eight & 0xffU;
  const int start = 31 - __clz(static_cast<int>(starts & ((2U << row) - 1)));
  const int rest = __ffs(static_cast<int>(starts >> (row + 1) | 1U << (7 - row)));
  const int log = 31 - __clz(rest);
  return ((row - start) & ((2 << log) - 1)) == 0 ? log : -1;
}

// A piece from `part` of `channel` on and number x, for both blocks of the cluster or for this one.
__device__ __forceinline__ void CopyPiece(bool both, uint32_t to, const CUtensorMap& map, int x, int part, int channel,
                                          uint32_t barrier) {
  if (both) {
    CopyBoxToBoth(to, map, x, part, channel, barrier);
  } else {
    CopyBox(to, map, x, part, channel, barrier);
  }
}

}  // namespace outrider::kernels::cuda
