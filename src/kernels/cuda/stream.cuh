#pragma once
// What the kernels of a decoding step share. They are bound by reading weights, and chained: a kernel starts while its
// predecessor ends (programmatic dependent launch), sends its first loads of weights, and only then waits for results.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace outrider::kernels::cuda {

using Bf16 = __nv_bfloat16;

// Lets the next kernel of the chain start where there is room.
__device__ __forceinline__ void StartNext() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Until all kernels before this one are done. Every block of a kernel of the chain comes here before it writes.
__device__ __forceinline__ void WaitForPrevious() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// 16 bytes of weights, or zeros. They pass through once and need not stay in the first cache. Volatile: sent where it
// stands, before any wait. Predicated, so that a loop stays one piece.
__device__ __forceinline__ uint4 LoadWeights(const uint8_t* at, bool valid) {
  uint4 value;
  asm volatile(
      "{\n"
      ".reg .pred valid;\n"
      "setp.ne.b32 valid, %5, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@valid ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];\n"
      "}"
      : "=&r"(value.x), "=&r"(value.y), "=&r"(value.z), "=&r"(value.w)
      : "l"(at), "r"(static_cast<int>(valid)));
  return value;
}

// 16 bytes that another kernel of the chain wrote, or zeros: never by the read-only path. Predicated, so that a loop
// stays one piece.
__device__ __forceinline__ uint4 LoadResult(const uint8_t* at, bool valid) {
  uint4 value;
  asm volatile(
      "{\n"
      ".reg .pred valid;\n"
      "setp.ne.b32 valid, %5, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@valid ld.global.v4.u32 {%0,%1,%2,%3}, [%4];\n"
      "}"
      : "=&r"(value.x), "=&r"(value.y), "=&r"(value.z), "=&r"(value.w)
      : "l"(at), "r"(static_cast<int>(valid))
      : "memory");
  return value;
}

// As LoadResult, 8 bytes.
__device__ __forceinline__ uint2 LoadResult8(const void* at, bool valid) {
  uint2 value;
  asm volatile(
      "{\n"
      ".reg .pred valid;\n"
      "setp.ne.b32 valid, %3, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\n"
      "@valid ld.global.v2.u32 {%0,%1}, [%2];\n"
      "}"
      : "=&r"(value.x), "=&r"(value.y)
      : "l"(at), "r"(static_cast<int>(valid))
      : "memory");
  return value;
}

// c [16, 8] += a [16, 16] b [16, 8]
__device__ __forceinline__ void Multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int Warp() { return static_cast<int>(threadIdx.x) / 32; }

__host__ __device__ constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// Launches a kernel that may start before the work in front of it on `stream` is done; cluster: blocks along x that
// exchange shared memory.
template <class... Parameters, class... Arguments>
cudaError_t LaunchChained(void (*kernel)(Parameters...), dim3 blocks, int threads, int cluster, cudaStream_t stream,
                          const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(cluster);
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = static_cast<unsigned>(threads);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace outrider::kernels::cuda
