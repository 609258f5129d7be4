#pragma once
// Positions of random generators, taken and put back around what may have to be undone.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <mutex>

#include "seam/keys.h"

namespace outrider::seam {

// The default CPU generator's state as an opaque tensor.
inline at::Tensor CpuGeneratorState() {
  LanesOff off;
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_state();
}

inline void SetCpuGeneratorState(const at::Tensor& state) {
  LanesOff off;
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state);
}

// The default generator of an accelerator; its position is an offset.
inline at::Generator DeviceGenerator(c10::Device device) { return at::globalContext().defaultGenerator(device); }

inline uint64_t GeneratorOffset(at::Generator generator) {
  std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_offset();
}

inline void SetGeneratorOffset(at::Generator generator, uint64_t offset) {
  std::lock_guard<std::mutex> lock(generator.mutex());
  generator.unsafeGetGeneratorImpl()->set_offset(offset);
}

}  // namespace outrider::seam
