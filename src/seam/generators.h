#pragma once
// Positions of random generators, taken and put back around what may have to be undone.

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace outrider::seam {

// The default CPU generator's state as an opaque tensor.
at::Tensor CpuGeneratorState();
void SetCpuGeneratorState(const at::Tensor& state);

// The default generator of an accelerator; its position is an offset.
at::Generator DeviceGenerator(c10::Device device);
uint64_t GeneratorOffset(at::Generator generator);
void SetGeneratorOffset(at::Generator generator, uint64_t offset);

}  // namespace outrider::seam
