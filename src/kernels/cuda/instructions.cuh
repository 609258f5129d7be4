#pragma once
// Instructions of sm_90a that the kernels of a decoding step and the router use and that CUDA C++ has no function for.
// Tests replace this header by one that runs on the CPU.

#include <cooperative_groups.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace outrider::kernels::cuda {

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

// Into the second cache: safe for numbers that other kernels still write.
__device__ __forceinline__ void Prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// 16 bytes that another kernel of the chain wrote, or zeros, into shared memory; `from` must be readable either way.
__device__ __forceinline__ void CopyToShared(void* to, const void* from, bool valid) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(valid ? 16 : 0)
      : "memory");
}
// Ends a group of this thread's copies.
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all of its groups but the last kPending are there.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// What the launch gave of shared memory, 16-byte aligned.
__device__ __forceinline__ uint8_t* DynamicShared() {
  extern __shared__ __align__(16) uint8_t dynamic_shared[];
  return dynamic_shared;
}

// The two halves of SyncCluster.
__device__ __forceinline__ void ArriveAtCluster() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void WaitForCluster() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// As Prefetch, of `bytes`, a multiple of 16, by one thread.
__device__ __forceinline__ void PrefetchRange(const void* at, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(bytes) : "memory");
}
// All threads of all blocks of the cluster.
__device__ __forceinline__ void SyncCluster() { cooperative_groups::this_cluster().sync(); }
// What block `rank` of the cluster has at the same place of its shared memory.
__device__ __forceinline__ const float* OfBlock(const float* own, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(own, static_cast<unsigned>(rank));
}
__device__ __forceinline__ float* OfBlock(float* own, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(own, static_cast<unsigned>(rank));
}

}  // namespace outrider::kernels::cuda
