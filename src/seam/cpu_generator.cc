#include "seam/cpu_generator.h"

#include <ATen/CPUGeneratorImpl.h>

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

}  // namespace outrider::seam
