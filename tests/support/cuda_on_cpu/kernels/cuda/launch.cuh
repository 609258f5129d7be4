#pragma once
// Instead of src/kernels/cuda/launch.cuh: a launch runs the kernel to its end.
#include "block.h"

namespace outrider::kernels::cuda {

struct BlockShape {
  int cluster = 1;
  int shared = 0;
};

template <class... Parameters, class... Arguments>
cudaError_t LaunchChained(void (*kernel)(Parameters...), dim3 blocks, int threads, BlockShape shape, cudaStream_t,
                          const Arguments&... arguments) {
  if (shape.shared > static_cast<int>(sizeof(cuda_on_cpu::dynamic_shared))) return cudaErrorInvalidValue;
  cuda_on_cpu::RunAll(blocks, threads, static_cast<unsigned>(shape.cluster), [&] { kernel(Parameters(arguments)...); });
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 blocks, int threads, cudaStream_t stream,
                   const Arguments&... arguments) {
  return LaunchChained(kernel, blocks, threads, {}, stream, arguments...);
}

}  // namespace outrider::kernels::cuda
