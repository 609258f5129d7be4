#pragma once
// Which id each row of logits makes the likeliest.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace outrider::kernels::cuda {

// best [rows]: the id of the largest of a row's `vocab` logits, the lowest of equals; -1 where one of them is not a
// finite number. logits: [rows, vocab].
cudaError_t FindLikeliest(const float* logits, int rows, int vocab, int64_t* best, cudaStream_t stream);

}  // namespace outrider::kernels::cuda
