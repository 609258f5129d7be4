#pragma once
// The FFN of many tokens: each token goes through the channels of its own expert.

#include <cstdint>
#include <span>

#include "base/result.h"
#include "kernels/channel_store.h"
#include "kernels/engine.h"
#include "kernels/scratch.h"
#include "kernels/workers.h"

namespace outrider::kernels {

// x and y [tokens, width] in the number of the store; experts[t] names the expert of token t.
struct FfnBatch {
  const void* x = nullptr;
  void* y = nullptr;
  std::span<const uint8_t> experts;
};

// y = down^T (silu(gate x) * (up x)) over the expert's channels. Sums are fp32; for bf16 the hidden numbers are rounded
// to bf16. The bits of a token's result depend on the store, its expert and its x, and on `engine`; not on other
// tokens, their number, or the number of threads. E_EXPERTS: an expert that the store does not have; y is then
// untouched.
base::Result<void> Prefill(const ChannelStore& store, const FfnBatch& batch, const PrefillEngine& engine,
                           Scratch& scratch, Workers& workers);

// With the fastest engine of this processor.
base::Result<void> Prefill(const ChannelStore& store, const FfnBatch& batch, Scratch& scratch, Workers& workers);

// E_EXPERTS unless each expert is one of the store's.
base::Result<void> CheckExperts(const ChannelStore& store, std::span<const uint8_t> experts);

}  // namespace outrider::kernels
