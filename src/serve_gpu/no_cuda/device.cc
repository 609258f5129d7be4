#include "serve_gpu/device.h"

namespace outrider::serve_gpu {

base::Result<void> CheckCuda() {
  return base::Fail("E_CUDA", "device cuda: found a build without CUDA, expected one of a CUDA build of torch");
}

base::Result<std::unique_ptr<Device>> MakeCuda(const GpuModel& model, const at::Tensor& staged) {
  (void)model, (void)staged;
  return tl::unexpected(CheckCuda().error());
}

}  // namespace outrider::serve_gpu
