#pragma once
#include "kernels/cuda/following.h"
#include "kernels/cuda/stream.cuh"

namespace outrider::kernels::cuda {

// The share of block `block` of `blocks`; all threads of the block call.
__device__ __forceinline__ void SendFor(const Following& to, int block, int blocks) {
  const int units = to.count != nullptr ? *to.count : to.units;
  const int step = blocks * static_cast<int>(blockDim.x);
  for (int i = block + static_cast<int>(threadIdx.x) * blocks; i < to.parts * to.each; i += step) {
    const int part = i / to.each, unit = units * part / to.parts + i % to.each;
    if (unit >= units) continue;
    const int line = to.list != nullptr ? to.list[unit]
                     : to.fold > 0      ? unit / to.fold * to.fold_lines + unit % to.fold
                                        : unit;
    const uint8_t* at = to.weight + line * to.line_bytes;
    PrefetchRange(at, to.bytes);
    if (to.second > 0) PrefetchRange(at + to.second, to.bytes);
  }
}

}  // namespace outrider::kernels::cuda
