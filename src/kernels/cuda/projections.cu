#include "kernels/cuda/projections.h"

#include <algorithm>

#include "kernels/cuda/shared_product.cuh"
#include "kernels/cuda/tied_ffn.h"
#include "kernels/cuda/turned.cuh"

namespace outrider::kernels::cuda {
namespace {

// Pairs: the two coordinates of a rotary plane, which lie half a head apart.
struct TurnedQkv {
  static constexpr bool kWholeTiles = false;
  const uint8_t* weight;
  const Bf16* bias;
  PagedAttention to;
  int depth;

  __device__ int half() const { return to.head_dim / 2; }
  __device__ int units() const { return (to.heads + 2 * to.kv_heads) * half(); }
  __device__ uint32_t Row(int unit) const {
    return static_cast<uint32_t>(unit / half() * to.head_dim + unit % half()) * static_cast<uint32_t>(depth / 8);
  }
  __device__ int second() const { return half() * (depth / 8); }
  using Fetched = TurnedPlace;
  __device__ Fetched Fetch(int unit, bool valid, int token) const {
    return valid ? TurnedPlaceOf(to, token, unit / half(), unit % half()) : Fetched{};
  }
  __device__ void Store(const Fetched& place, int unit, bool valid, int /*token*/, float a, float b) const {
    if (!valid) return;
    if (bias != nullptr) {
      const int row = unit / half() * to.head_dim + unit % half();
      a += __bfloat162float(bias[row]);
      b += __bfloat162float(bias[row + half()]);
    }
    StoreTurnedPair(to, place, __bfloat162float(__float2bfloat16(a)), __bfloat162float(__float2bfloat16(b)));
  }
};

// Pairs of rows half the matrix apart. Of an odd number of rows one is in two pairs, with the same bits.
struct Halves {
  const uint8_t* weight;
  int rows, depth;

  __device__ int units() const { return (rows + 1) / 2; }
  __device__ uint32_t Row(int unit) const { return static_cast<uint32_t>(unit) * static_cast<uint32_t>(depth / 8); }
  __device__ int second() const { return rows / 2 * (depth / 8); }
};

struct Added : Halves {
  static constexpr bool kWholeTiles = true;  // a part of the squares is that of a tile, whatever block has it
  const Bf16* bias;
  Residual to;

  struct Fetched {
    Before a, b;
  };
  __device__ Fetched Fetch(int unit, bool valid, int token) const {
    return valid ? Fetched{FetchResidual(to, token, unit), FetchResidual(to, token, unit + rows / 2)} : Fetched{};
  }
  __device__ float Add(const Before& before, int row, int token, float a) const {
    if (bias != nullptr) a += __bfloat162float(bias[row]);
    return StoreResidual(to, token, row, before.x + a, before.weight);
  }
  __device__ void Store(const Fetched& before, int unit, bool valid, int token, float a, float b) const {
    float square = 0;
    if (valid) square = Add(before.a, unit, token, a) + Add(before.b, unit + rows / 2, token, b);
    const unsigned tile = 0xffU << (Lane() & ~7);
    for (int distance = 4; distance > 0; distance /= 2) square += __shfl_xor_sync(tile, square, distance);
    if (Lane() % 8 == 0) to.squares[token * kSquaresMax + unit / kTilePairs] = square;
  }
};

struct Logits : Halves {
  static constexpr bool kWholeTiles = false;
  float* logits;

  struct Fetched {};
  __device__ Fetched Fetch(int /*unit*/, bool /*valid*/, int /*token*/) const { return {}; }
  __device__ void Store(Fetched /*nothing*/, int unit, bool valid, int token, float a, float b) const {
    if (!valid) return;
    float* to = logits + static_cast<int64_t>(token) * rows + unit;
    to[0] = a;
    to[rows / 2] = b;
  }
};

bool Fits(const Projection& call) {
  return call.rows > 0 && call.depth > 0 && call.depth % 32 == 0 && call.tokens > 0 &&
         call.tokens <= kDecodeTokensMax && call.multiprocessors > 0;
}

Inputs InputsOf(const Projection& call) {
  const Squares squares = {call.residual.squares, call.squares, call.residual.width, call.residual.eps};
  return {static_cast<const uint8_t*>(call.x), call.tokens, call.depth, squares, call.following};
}

Halves HalvesOf(const Projection& call) { return {static_cast<const uint8_t*>(call.weight), call.rows, call.depth}; }

}  // namespace

cudaError_t ProjectQkv(const Projection& call, const PagedAttention& to, cudaStream_t stream) {
  if (!Fits(call) || call.squares <= 0 || to.head_dim % 2 != 0) return cudaErrorInvalidValue;
  const TurnedQkv out = {static_cast<const uint8_t*>(call.weight), static_cast<const Bf16*>(call.bias), to, call.depth};
  return LaunchProduct<kWideForms, kWideShared>(out, InputsOf(call), call.multiprocessors, stream);
}

// Of rows that lie one after another, in pairs.
Following FollowingRows(const void* weight, int rows, int depth, int multiprocessors) {
  Following to;
  to.weight = static_cast<const uint8_t*>(weight);
  to.units = rows / 2;
  to.line_bytes = depth * 2;
  to.bytes = std::min(depth * 2, kBytesSentFor);
  to.second = to.units * to.line_bytes;
  to.parts = SharedClusters(multiprocessors);
  to.each = kUnitsSentFor;
  return to;
}

Following FollowingQkv(const void* weight, int depth, const PagedAttention& to, int multiprocessors) {
  Following rows = FollowingRows(weight, (to.heads + 2 * to.kv_heads) * to.head_dim, depth, multiprocessors);
  rows.fold = to.head_dim / 2;
  rows.fold_lines = to.head_dim;
  rows.second = rows.fold * rows.line_bytes;
  return rows;
}

int ProjectSquares(int rows) { return CeilDiv(rows, 2 * kTilePairs); }

cudaError_t ProjectAndAdd(const Projection& call, cudaStream_t stream) {
  if (!Fits(call) || call.rows % 2 != 0 || call.rows != call.residual.width || ProjectSquares(call.rows) > kSquaresMax)
    return cudaErrorInvalidValue;
  const Added out = {HalvesOf(call), static_cast<const Bf16*>(call.bias), call.residual};
  Inputs in = InputsOf(call);
  in.squares.parts = 0;
  return LaunchProduct<kNarrowForms, kNarrowShared>(out, in, call.multiprocessors, stream);
}

cudaError_t ProjectLogits(const Projection& call, float* logits, cudaStream_t stream) {
  if (!Fits(call) || call.squares <= 0) return cudaErrorInvalidValue;
  return LaunchProduct<kWideForms, kNarrowShared>(Logits{HalvesOf(call), logits}, InputsOf(call), call.multiprocessors,
                                                  stream);
}

}  // namespace outrider::kernels::cuda
