// Decode: a few tokens, bound by memory. Each record that a token of the step wants is read once, in two products:
// gates and ups over all wanted channels (product.cuh), and the columns (columns.cuh).
#include <algorithm>

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/live.cuh"
#include "kernels/cuda/shared_product.cuh"
#include "kernels/cuda/silu.cuh"
#include "kernels/cuda/tied_ffn.h"

namespace outrider::kernels::cuda {
namespace {

// Pairs: gate and up of the wanted channels. Hidden numbers are zero where the channel is not the token's.
struct Hidden {
  static constexpr bool kWholeTiles = false;
  const uint8_t* weight;  // records
  const uint16_t* signatures;
  const uint8_t* ids;
  Live live;
  Bf16* hidden;
  int width, padded;

  __device__ int units() const { return *live.count; }
  __device__ uint32_t Row(int unit) const {
    return static_cast<uint32_t>(live.list[unit]) * static_cast<uint32_t>(3 * width / 8);
  }
  __device__ int second() const { return width / 8; }
  struct Fetched {
    int channel = 0;
    bool has = false;
  };
  __device__ Fetched Fetch(int unit, bool valid, int token) const {
    if (!valid) return {};
    const int channel = live.list[unit];
    return {channel, (signatures[channel] >> ids[token] & 1) != 0};
  }
  __device__ void Store(const Fetched& of, int /*unit*/, bool valid, int token, float gate, float up) const {
    if (!valid) return;
    hidden[static_cast<int64_t>(token) * padded + of.channel] = __float2bfloat16(of.has ? SiluTimes(gate, up) : 0);
  }
};

int PaddedChannels(const Layer& layer) { return CeilDiv(layer.channels, kGroup) * kGroup; }

int64_t HiddenSize(const Layer& layer) { return static_cast<int64_t>(kDecodeTokensMax) * PaddedChannels(layer) * 2; }

// The first wanted channels of each chain, which hold about as many.
Following FollowingColumns(const Layer& layer, const Live& live) {
  Following to;
  to.weight = static_cast<const uint8_t*>(layer.records) + 4 * layer.width;
  to.list = live.list;
  to.count = live.count;
  to.line_bytes = 6 * layer.width;
  to.bytes = 2 * layer.width;
  to.parts = kDecodeChains;
  to.each = kColumnsSentFor;
  return to;
}

bool Fits(const Layer& layer, int tokens) {
  return layer.width > 0 && layer.width % kWidthMultiple == 0 && layer.channels > 0 && layer.experts >= 1 &&
         layer.experts <= kExpertsMax && tokens >= 0 && tokens <= kDecodeTokensMax;
}

}  // namespace

Following FollowingFfn(const Layer& layer, const void* live, int multiprocessors) {
  const Live wanted(live, layer.channels);
  Following to;
  to.weight = static_cast<const uint8_t*>(layer.records);
  to.list = wanted.list;
  to.count = wanted.count;
  to.line_bytes = 6 * layer.width;
  to.bytes = std::min(2 * layer.width, kBytesSentFor);
  to.second = 2 * layer.width;
  to.parts = SharedClusters(multiprocessors);
  to.each = kUnitsSentFor;
  return to;
}

int DecodeSquares(int width) { return ColumnsSquares(width); }

int64_t DecodeBytes(const Layer& layer) { return HiddenSize(layer) + LiveBytes(layer.channels); }

cudaError_t Decode(const Layer& layer, const DecodeCall& call, cudaStream_t stream) {
  if (!Fits(layer, call.tokens)) return cudaErrorInvalidValue;
  if (call.tokens == 0) return cudaSuccess;
  const Live live(call.live, layer.channels);
  const auto* records = static_cast<const uint8_t*>(layer.records);
  auto* hidden = static_cast<Bf16*>(call.scratch);
  const int padded = PaddedChannels(layer);
  const Hidden out = {records, layer.signatures, call.ids, live, hidden, layer.width, padded};
  const Squares squares = {call.residual.squares, call.squares, layer.width, call.residual.eps};
  const Inputs in = {static_cast<const uint8_t*>(call.x), call.tokens, layer.width, squares,
                     FollowingColumns(layer, live)};
  const ColumnsCall columns = {records + 4 * layer.width,
                               live,
                               hidden,
                               call.residual,
                               static_cast<Bf16*>(call.y),
                               layer.channels,
                               padded,
                               layer.width,
                               call.tokens,
                               call.following};
  const cudaError_t status =
      LaunchProduct<kWideForms, kWideShared>(out, in, call.multiprocessors, stream, call.chained);
  return status == cudaSuccess ? LaunchColumns(columns, stream) : status;
}

cudaError_t Decode(const Layer& layer, const uint8_t* ids, const void* x, void* y, int tokens, void* scratch,
                   int multiprocessors, cudaStream_t stream) {
  if (!Fits(layer, tokens)) return cudaErrorInvalidValue;
  if (tokens == 0) return cudaSuccess;
  DecodeCall call;
  call.ids = ids;
  call.x = x;
  call.y = y;
  call.tokens = tokens;
  call.scratch = scratch;
  call.live = static_cast<uint8_t*>(scratch) + HiddenSize(layer);
  call.multiprocessors = multiprocessors;
  call.chained = false;
  const LiveJob job = {layer.signatures, layer.channels, static_cast<uint8_t*>(scratch) + HiddenSize(layer)};
  if (const cudaError_t status = FindLive(job, ids, tokens, stream); status != cudaSuccess) return status;
  return Decode(layer, call, stream);
}

}  // namespace outrider::kernels::cuda
