#include "serve_gpu/router_device.h"

namespace outrider::serve_gpu {

base::Result<void> CheckCudaRouter(const serve::RouterSpec& spec) {
  (void)spec;
  return base::Fail("E_CUDA", "router: found a build without CUDA, expected one of a CUDA build of torch");
}

base::Result<std::unique_ptr<serve::RouterDevice>> MakeCudaRouter(const serve::RouterSpec& spec,
                                                                  const serve::RouterWeights& weights,
                                                                  const serve::ModelShape& shape, int device) {
  (void)weights, (void)shape, (void)device;
  return tl::unexpected(CheckCudaRouter(spec).error());
}

}  // namespace outrider::serve_gpu
