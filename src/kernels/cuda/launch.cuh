#pragma once
// Launches of the kernels of a decoding step and of the router. Tests replace this header by one that runs on the CPU.

#include <cuda_runtime.h>

namespace outrider::kernels::cuda {

template <class... Parameters, class... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 blocks, int threads, cudaStream_t stream,
                   const Arguments&... arguments) {
  kernel<<<blocks, static_cast<unsigned>(threads), 0, stream>>>(Parameters(arguments)...);
  return cudaGetLastError();
}

// What a block has beside its threads.
struct BlockShape {
  int cluster = 1;  // blocks along x that exchange shared memory
  int shared = 0;   // bytes of shared memory beside what the kernel names
};

// Launches a kernel that may start before the work in front of it on `stream` is done, where that has a kernel that
// lets it.
template <class... Parameters, class... Arguments>
cudaError_t LaunchChained(void (*kernel)(Parameters...), dim3 blocks, int threads, BlockShape shape,
                          cudaStream_t stream, const Arguments&... arguments) {
  if (shape.shared > 0) {
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared);
    if (status != cudaSuccess) return status;
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace outrider::kernels::cuda
