#include "serve_gpu/router_device.h"

namespace outrider::serve_gpu {

base::Result<std::unique_ptr<serve::RouterDevice>> MakeCudaRouter(const serve::RouterSpec& spec,
                                                                  const serve::RouterWeights& weights,
                                                                  const serve::ModelShape& shape, int device) {
  (void)spec, (void)weights, (void)shape, (void)device;
  return base::Fail("E_CUDA", "router: found a build without CUDA, expected one of a CUDA build of torch");
}

}  // namespace outrider::serve_gpu
