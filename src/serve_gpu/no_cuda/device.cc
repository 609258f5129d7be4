#include "serve_gpu/device.h"

namespace outrider::serve_gpu {

base::Result<void> CheckCuda() {
  return base::Fail("E_CUDA",
                    "device cuda: found a build without CUDA, expected one of a CUDA build of torch; "
                    "build again with such a torch, or serve with the device cpu");
}

base::Result<void> CheckCudaShape(const spec::Config& config) {
  (void)config;
  return CheckCuda();
}

CudaFacts CudaFactsNow() { return {}; }

base::Result<std::unique_ptr<Device>> MakeCuda(const GpuModel& model, const Staged& staged) {
  (void)model, (void)staged;
  return tl::unexpected(CheckCuda().error());
}

}  // namespace outrider::serve_gpu
