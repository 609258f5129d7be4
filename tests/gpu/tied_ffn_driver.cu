// C functions over the CUDA form of the channel-record FFN, for ctypes. Pointers are device memory.
#include "kernels/cuda/tied_ffn.h"

namespace cuda = outrider::kernels::cuda;

extern "C" {

int tied_plan(const uint8_t* ids, int tokens, int experts, int32_t* order, int32_t* order_at, void* stream) {
  return cuda::MakePlan(ids, tokens, experts, {order, order_at}, static_cast<cudaStream_t>(stream));
}

int64_t tied_prefill_bytes(const cuda::Layer* layer, int tokens) { return cuda::PrefillBytes(*layer, tokens); }

int64_t tied_decode_bytes(const cuda::Layer* layer, int) { return cuda::DecodeBytes(*layer); }

int tied_prefill(const cuda::Layer* layer, int32_t* order, int32_t* order_at, const void* x, void* y, int tokens,
                 void* scratch, int multiprocessors, void* stream) {
  return cuda::Prefill(*layer, {order, order_at}, x, y, tokens, scratch, multiprocessors,
                       static_cast<cudaStream_t>(stream));
}

int tied_decode(const cuda::Layer* layer, const uint8_t* ids, const void* x, void* y, int tokens, void* scratch,
                void* stream) {
  int device = 0, multiprocessors = 0;
  if (const cudaError_t status = cudaGetDevice(&device); status != cudaSuccess) return status;
  const cudaError_t status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  return cuda::Decode(*layer, ids, x, y, tokens, scratch, multiprocessors, static_cast<cudaStream_t>(stream));
}

}  // extern "C"
