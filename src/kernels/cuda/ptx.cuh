#pragma once
// The few instructions of sm_90a that have no function in CUDA C++.

#include <cstdint>

namespace outrider::kernels::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes, or 16 zero bytes when `valid` is false; `source` must be readable either way.
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* source, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(bytes) : "memory");
}

__device__ __forceinline__ void BarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void MatrixFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void MatrixCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void MatrixWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Operand in shared memory, rows of 128 bytes in groups of 8, 16-byte pieces of row r permuted by xor with r % 8; the
// address a multiple of 1024 plus an offset inside a row. group_bytes: from one group of 8 rows to the next along the
// dimension that is not contiguous. block_bytes: from 64 numbers to the next 64 along the contiguous dimension; used
// only where the contiguous dimension is not the summed one.
__device__ __forceinline__ uint64_t Operand(uint32_t address, uint32_t group_bytes, uint32_t block_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | static_cast<uint64_t>((address & 0x3ffffU) >> 4) |
         static_cast<uint64_t>(block_bytes >> 4) << 16 | static_cast<uint64_t>(group_bytes >> 4) << 32;
}

}  // namespace outrider::kernels::cuda
