#pragma once
// A decoding step of a whole model as one chain of kernels on a CUDA device (sm_90a): five launches a layer, each of
// which starts while the one before it ends. At most kDecodeTokensMax tokens; bf16 with fp32 sums. Pointers are device
// memory unless a comment says otherwise. A token's bits depend on its own text and experts only.

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/tied_ffn.h"

namespace outrider::kernels::cuda {

struct StepLayer {
  const void* attn_norm = nullptr;  // bf16, as all weights
  const void* qkv = nullptr;
  const void* qkv_bias = nullptr;  // or null
  const void* o = nullptr;
  const void* o_bias = nullptr;  // or null
  const void* ffn_norm = nullptr;
  Layer ffn;
  int window = 0;
};

struct StepModel {
  std::vector<StepLayer> layers;  // host memory
  const void* embed = nullptr;
  const void* norm = nullptr;
  const void* head = nullptr;
  int width = 0, vocab = 0, heads = 0, kv_heads = 0, head_dim = 0;
  float eps = 0;
};

// Memory of a step, the same for every step of a model.
struct StepBuffers {
  void* x = nullptr;              // bf16 [kDecodeTokensMax, width]
  void* weighted = nullptr;       // as x
  float* squares = nullptr;       // [kDecodeTokensMax, kSquaresMax]
  void* qkv = nullptr;            // bf16 [kDecodeTokensMax, (heads + 2 kv_heads) * head_dim]
  void* mixed = nullptr;          // bf16 [kDecodeTokensMax, heads * head_dim]
  void* scratch = nullptr;        // DecodeBytes of the largest layer
  uint8_t* live = nullptr;        // live_stride bytes for each layer
  int64_t live_stride = 0;        // LiveBytes of the largest layer
  const LiveJob* jobs = nullptr;  // JobsOf
};

// To be copied to the device.
std::vector<LiveJob> JobsOf(const StepModel& model, const StepBuffers& buffers);

struct Step {
  const int32_t* ids = nullptr;  // [tokens]
  const int32_t* positions = nullptr;
  const uint8_t* experts = nullptr;
  const int32_t* pages = nullptr;  // [tokens, table]
  const float* cos = nullptr;      // [tokens, head_dim / 2]
  const float* sin = nullptr;
  void* const* keys = nullptr;  // host memory: pages of each layer (paged_attention.h)
  void* const* values = nullptr;
  float* logits = nullptr;  // [tokens, vocab], or null: they are not made
  int tokens = 0, table = 0;
  int multiprocessors = 0;
};

cudaError_t RunStep(const StepModel& model, const StepBuffers& buffers, const Step& step, cudaStream_t stream);

}  // namespace outrider::kernels::cuda
