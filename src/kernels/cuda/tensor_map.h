#pragma once
// Descriptions of bf16 matrices for the copies of tensor_copy.cuh.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace outrider::kernels::cuda {

// [parts][rows][width]; strides in numbers, multiples of 8 where there is more than one.
struct Matrices {
  const void* base = nullptr;
  int64_t width = 0, rows = 0, parts = 1;
  int64_t row_stride = 0, part_stride = 8;
};

// Boxes [1][box_rows][64], their rows permuted as Operand in ptx.cuh wants them; numbers outside are zeros. The
// driver's function is looked up at run time: no library is linked.
inline cudaError_t MakeMap(const Matrices& of, int box_rows, int box_parts, CUtensorMap* map) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    constexpr int kSince = 12000;
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kSince, cudaEnableDefault, &result);
    return status == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(of.width), static_cast<cuuint64_t>(of.rows),
                              static_cast<cuuint64_t>(of.parts)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(of.row_stride) * 2,
                                static_cast<cuuint64_t>(of.part_stride) * 2};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(box_parts)},
                   steps[] = {1, 1, 1};
  const CUresult status = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(of.base), sizes, strides,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace outrider::kernels::cuda
