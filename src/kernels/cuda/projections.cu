#include "kernels/cuda/projections.h"

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
  __device__ void Store(int unit, bool valid, int token, float a, float b) const {
    if (!valid) return;
    const int head = unit / half(), pair = unit % half(), row = head * to.head_dim + pair;
    if (bias != nullptr) {
      a += __bfloat162float(bias[row]);
      b += __bfloat162float(bias[row + half()]);
    }
    StoreTurnedPair(to, token, head, pair, __bfloat162float(__float2bfloat16(a)),
                    __bfloat162float(__float2bfloat16(b)));
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

  __device__ float Add(int row, int token, float a) const {
    if (bias != nullptr) a += __bfloat162float(bias[row]);
    const Bf16 before = static_cast<const Bf16*>(to.x)[static_cast<int64_t>(token) * to.width + row];
    return StoreResidual(to, token, row, __bfloat162float(before) + a);
  }
  __device__ void Store(int unit, bool valid, int token, float a, float b) const {
    float square = 0;
    if (valid) square = Add(unit, token, a) + Add(unit + rows / 2, token, b);
    const unsigned tile = 0xffU << (Lane() & ~7);
    for (int distance = 4; distance > 0; distance /= 2) square += __shfl_xor_sync(tile, square, distance);
    if (Lane() % 8 == 0) to.squares[token * kSquaresMax + unit / kTilePairs] = square;
  }
};

struct Logits : Halves {
  static constexpr bool kWholeTiles = false;
  float* logits;

  __device__ void Store(int unit, bool valid, int token, float a, float b) const {
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
  return {static_cast<const uint8_t*>(call.x), call.tokens, call.depth, squares};
}

Halves HalvesOf(const Projection& call) { return {static_cast<const uint8_t*>(call.weight), call.rows, call.depth}; }

}  // namespace

cudaError_t ProjectQkv(const Projection& call, const PagedAttention& to, cudaStream_t stream) {
  if (!Fits(call) || call.squares <= 0 || to.head_dim % 2 != 0) return cudaErrorInvalidValue;
  const TurnedQkv out = {static_cast<const uint8_t*>(call.weight), static_cast<const Bf16*>(call.bias), to, call.depth};
  return LaunchProduct<kWideForms, kWideShared>(out, InputsOf(call), call.multiprocessors, stream);
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
  return LaunchProduct<kWideForms, kWideShared>(Logits{HalvesOf(call), logits}, InputsOf(call), call.multiprocessors, stream);
}

}  // namespace outrider::kernels::cuda
