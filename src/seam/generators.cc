#include "seam/generators.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <mutex>

#include "seam/keys.h"

namespace outrider::seam {

at::Tensor CpuGeneratorState() {
  LanesOff off;
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_state();
}

void SetCpuGeneratorState(const at::Tensor& state) {
  LanesOff off;
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state);
}

at::Generator DeviceGenerator(c10::Device device) { return at::globalContext().defaultGenerator(device); }

uint64_t GeneratorOffset(at::Generator generator) {
  std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_offset();
}

void SetGeneratorOffset(at::Generator generator, uint64_t offset) {
  std::lock_guard<std::mutex> lock(generator.mutex());
  generator.unsafeGetGeneratorImpl()->set_offset(offset);
}

}  // namespace outrider::seam
