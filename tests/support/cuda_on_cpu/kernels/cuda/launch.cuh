#pragma once
// Instead of src/kernels/cuda/launch.cuh: a launch runs the kernel to its end.
#include "block.h"

namespace outrider::kernels::cuda {

template <class... Parameters, class... Arguments>
cudaError_t LaunchChained(void (*kernel)(Parameters...), dim3 blocks, int threads, int cluster, cudaStream_t,
                          const Arguments&... arguments) {
  cuda_on_cpu::RunAll(blocks, threads, static_cast<unsigned>(cluster), [&] { kernel(Parameters(arguments)...); });
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 blocks, int threads, cudaStream_t stream,
                   const Arguments&... arguments) {
  return LaunchChained(kernel, blocks, threads, 1, stream, arguments...);
}

}  // namespace outrider::kernels::cuda
