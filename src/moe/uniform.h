#pragma once
// First values of weights that are tuned from nothing.

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "moe/philox.h"

namespace outrider::moe {

// fp32 on the CPU, uniform in +-bound, drawn by (seed, use, slot, element).
inline at::Tensor UniformTensor(at::IntArrayRef shape, double bound, uint64_t seed, Use use, uint32_t slot) {
  const at::Tensor out = at::empty(shape, at::TensorOptions().dtype(at::kFloat));
  float* data = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < out.numel(); ++i) {
    const uint64_t bits = Random64(seed, use, slot, 0, static_cast<uint32_t>(i));
    data[i] = static_cast<float>((static_cast<double>(bits >> 11) * 0x1p-52 - 1) * bound);
  }
  return out;
}

}  // namespace outrider::moe
