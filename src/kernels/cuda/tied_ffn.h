#pragma once
// Both forms of the channel-record FFN on a CUDA device (sm_90a), bf16 with fp32 sums. Every pointer is device memory
// unless it says otherwise; all work goes onto `stream`, nothing is allocated and nothing waits. No torch, no other
// room.
//
// The bits of a token's result depend on the layer, its expert and its x: all tiles and orders are fixed, and no sum
// is made by atomic operations; prefill counts with them who computes which tile. Prefill and decode differ in the last
// bits.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/following.h"
#include "kernels/cuda/residual.h"

namespace outrider::kernels::cuda {

constexpr int kExpertsMax = 16;
constexpr int kWidthMultiple = 64;
constexpr int kDecodeTokensMax = 32;
constexpr int kDecodeChains = 32;  // ranges of the stored order that a decode step sums apart

// One layer. Record c is gate row | up row | down column of channel c, `width` bf16 each (channel_store.h); records
// hold less than 64 GiB. `lists` holds the channels of expert 0, then of expert 1, ...; expert i has those from
// list_at[i] to list_at[i + 1], ascending. All weights are finite: a decode step multiplies foreign ones by zero.
struct Layer {
  const void* records = nullptr;         // 16-byte aligned
  const uint16_t* signatures = nullptr;  // [channels]
  const int32_t* lists = nullptr;
  const int32_t* list_at = nullptr;  // [experts + 1]
  int channels = 0;
  int width = 0;  // a multiple of kWidthMultiple
  int experts = 0;
  int active_max = 0;  // channels of the largest expert
};

// Tokens sorted by expert: the same for all layers of a step.
struct Plan {
  int32_t* order = nullptr;     // [tokens]
  int32_t* order_at = nullptr;  // [experts + 1], tokens of expert i as in lists
};

// Fills the plan from expert ids uint8 [tokens], each less than `experts`.
cudaError_t MakePlan(const uint8_t* ids, int tokens, int experts, const Plan& plan, cudaStream_t stream);

// x and y bf16 [tokens, width]; scratch: PrefillBytes, 256-byte aligned. Three launches on `multiprocessors`. Fastest
// where the channels of each list lie together in long runs.
int64_t PrefillBytes(const Layer& layer, int tokens);
cudaError_t Prefill(const Layer& layer, const Plan& plan, const void* x, void* y, int tokens, void* scratch,
                    int multiprocessors, cudaStream_t stream);

// The channels of a layer that the tokens of a step want; live: LiveBytes, on the device.
struct LiveJob {
  const uint16_t* signatures = nullptr;
  int channels = 0;
  void* live = nullptr;
};
int64_t LiveBytes(int channels);
// For `count` layers at once; jobs: device memory.
cudaError_t FindLive(const LiveJob* jobs, int count, const uint8_t* ids, int tokens, cudaStream_t stream);
cudaError_t FindLive(const LiveJob& job, const uint8_t* ids, int tokens, cudaStream_t stream);

// The FFN of at most kDecodeTokensMax tokens as part of a chain (stream.cuh).
struct DecodeCall {
  const uint8_t* ids = nullptr;
  const void* live = nullptr;  // of these ids
  bool chained = true;         // `live` is done before the kernel in front of this one has started
  const void* x = nullptr;     // bf16 [tokens, width]
  int squares = 0;             // parts of residual.squares by which gates and ups are normalized; 0: they are not
  Residual residual;           // the result is added; its x null: it is stored in y
  void* y = nullptr;           // bf16 [tokens, width]
  int tokens = 0;
  void* scratch = nullptr;  // DecodeBytes
  int multiprocessors = 0;
  Following following;
};
Following FollowingFfn(const Layer& layer, const void* live, int multiprocessors);
int64_t DecodeBytes(const Layer& layer);
// Parts of residual.squares that Decode leaves.
int DecodeSquares(int width);
cudaError_t Decode(const Layer& layer, const DecodeCall& call, cudaStream_t stream);
// All of it, from expert ids: y = FFN(x). Three launches.
cudaError_t Decode(const Layer& layer, const uint8_t* ids, const void* x, void* y, int tokens, void* scratch,
                   int multiprocessors, cudaStream_t stream);

}  // namespace outrider::kernels::cuda
