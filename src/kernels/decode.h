#pragma once
// The FFN of a few tokens, bound by memory: the union of their experts' channels is read once, in stored order.

#include "kernels/linear.h"
#include "kernels/prefill.h"

namespace outrider::kernels {

// As Prefill, for at most kDecodeTokensMax tokens; hidden numbers stay fp32. Sums are taken over fixed parts of the
// channels and then over the parts, so the bits of a token's result do not depend on other tokens or on threads;
// they differ from those of Prefill. E_SHAPE: too many tokens.
base::Result<void> Decode(const ChannelStore& store, const FfnBatch& batch, const DecodeEngine& engine,
                          Scratch& scratch, Workers& workers);

// The same with fp32 rows, whatever the number of the store.
struct FloatBatch {
  const float* x = nullptr;
  float* y = nullptr;
  std::span<const uint8_t> experts;
  Into into = Into::kSet;
};
base::Result<void> Decode(const ChannelStore& store, const FloatBatch& batch, const DecodeEngine& engine,
                          Scratch& scratch, Workers& workers);

// With the fastest engine of this processor.
base::Result<void> Decode(const ChannelStore& store, const FfnBatch& batch, Scratch& scratch, Workers& workers);

}  // namespace outrider::kernels
