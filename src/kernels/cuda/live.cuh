#pragma once
// The channels that the tokens of a step want, of one layer: found once per step, read by both products of the FFN.
//   count  int32, then 12 bytes
//   list   int32 [count, of channels], ascending
//   masks  uint16 [groups]; bit i: channel 16 * group + i is wanted

#include <cuda_runtime.h>

#include <cstdint>

namespace outrider::kernels::cuda {

constexpr int kGroup = 16;  // channels of one step of the second product

struct Live {
  const int32_t* count = nullptr;
  const int32_t* list = nullptr;
  const uint16_t* masks = nullptr;

  __host__ __device__ Live(const void* memory, int channels)
      : count(static_cast<const int32_t*>(memory)),
        list(count + 4),
        masks(reinterpret_cast<const uint16_t*>(list + (channels + 3) / 4 * 4)) {}
};

}  // namespace outrider::kernels::cuda
