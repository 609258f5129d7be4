#pragma once
// The router on the device that serves the backbone, on a stream of its own.

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "serve/router/staged_router.h"
#include "serve/router/weights.h"

namespace outrider::serve_gpu {

// What it takes of the device: weights, tables and memory of a launch, reckoned in fp32; keys and values of one page.
int64_t RouterBytes(const serve::RouterSpec& spec);
int64_t RouterPageBytes(const serve::RouterSpec& spec);

// E_CUDA: a router beyond what the kernels take, or a build without CUDA.
base::Result<void> CheckCudaRouter(const serve::RouterSpec& spec);

// Copies the weights to the CUDA device of that number. Codes: those of CheckCudaRouter; E_CUDA no such device;
// E_MEMORY no memory there.
base::Result<std::unique_ptr<serve::RouterDevice>> MakeCudaRouter(const serve::RouterSpec& spec,
                                                                  const serve::RouterWeights& weights,
                                                                  const serve::ModelShape& shape, int device);

}  // namespace outrider::serve_gpu
