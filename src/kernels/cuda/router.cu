#include "kernels/cuda/router.h"

#include <cmath>

#include "kernels/cuda/instructions.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/stream.cuh"

namespace outrider::kernels::cuda {
namespace {

constexpr int kTileTokens = 8;  // of a block of Product
constexpr int kWarpColumns = 4;
constexpr int kProductWarps = 4, kBlockColumns = kProductWarps * kWarpColumns;
constexpr int kSums = kTileTokens * kWarpColumns;
static_assert(kSums == 32);                          // one for each lane in the end
constexpr int kSteps = 8, kSlabDepth = kSteps * 32;  // of the depth, whose weights a warp loads ahead
constexpr int kAttendWarps = 8;
constexpr int kTurnThreads = 128;

enum class Into : uint8_t { kStore, kAdd, kSilu };

__device__ __forceinline__ float SumOfWarp(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0U, value, distance);
  return value;
}

__device__ __forceinline__ float MaxOfHalf(float value) {  // of 16 lanes
  for (int distance = 8; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(~0U, value, distance));
  return value;
}

__global__ void __launch_bounds__(kTurnThreads) Gather(RouterModel model, const int32_t* ids, float* x) {
  StartNext();
  WaitForPrevious();
  const int64_t from = static_cast<int64_t>(ids[blockIdx.x]) * model.width;
  float* to = x + static_cast<int64_t>(blockIdx.x) * model.width;
  for (int i = static_cast<int>(threadIdx.x); i < model.width; i += kTurnThreads)
    to[i] = model.table_bf16 ? __bfloat162float(static_cast<const Bf16*>(model.table)[from + i])
                             : static_cast<const float*>(model.table)[from + i];
}

struct Factors {
  const float *x, *norm;  // [tokens, depth]; norm null: as they are
  float eps;
  const float *weight, *bias;  // [columns, depth], [columns]
  float* to;                   // [tokens, columns]
  int depth, columns, tokens;
};

__host__ __device__ constexpr int RowStride(int depth) { return CeilDiv(depth, kSlabDepth) * kSlabDepth; }

// Rows of a tile into shared memory, normed where that is wanted; zeros behind the last row and the last number.
__device__ __forceinline__ void TakeRows(const Factors& f, int first, float* rows) {
  const int stride = RowStride(f.depth);
  for (int t = Warp(); t < kTileTokens; t += kProductWarps) {
    const float* from = f.x + static_cast<int64_t>(first + t) * f.depth;
    float* row = rows + t * stride;
    const bool there = first + t < f.tokens;
    float squares = 0;
#pragma unroll 8
    for (int k = Lane(); k < stride; k += 32) {
      const float value = there && k < f.depth ? from[k] : 0;
      row[k] = value;
      squares = __fmaf_rn(value, value, squares);
    }
    if (f.norm == nullptr) continue;
    const float scale = 1 / sqrtf(SumOfWarp(squares) / static_cast<float>(f.depth) + f.eps);
#pragma unroll 8
    for (int k = Lane(); k < f.depth; k += 32) row[k] = __fmul_rn(__fmul_rn(row[k], scale), f.norm[k]);
  }
}

// Lanes exchange halves of what they have, until lane l has the sum over all lanes of sums[l] in sums[0].
template <int kHalf>
__device__ __forceinline__ void SumForLanes(float (&sums)[kSums]) {
  const bool upper = (Lane() & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float sent = upper ? sums[i] : sums[i + kHalf], kept = upper ? sums[i + kHalf] : sums[i];
    sums[i] = kept + __shfl_xor_sync(~0U, sent, kHalf);
  }
  if constexpr (kHalf > 1) SumForLanes<kHalf / 2>(sums);
}

// Weights of a warp's columns: of each lane one number in 32.
struct Slab {
  float weights[kSteps][kWarpColumns];
};

__device__ __forceinline__ void Load(const float* const (&columns)[kWarpColumns], int from, int depth, Slab& slab) {
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int k = from + 32 * s + Lane();
#pragma unroll
    for (int c = 0; c < kWarpColumns; ++c) slab.weights[s][c] = k < depth ? columns[c][k] : 0;
  }
}

// x times the transposed weight. A block takes kTileTokens tokens and kBlockColumns columns; the lanes of a warp share
// the depth, so that a row of weights is read in one piece, once for all tokens of the tile. The first weights are on
// their way before the kernel in front is done.
template <Into kInto>
__global__ void __launch_bounds__(kProductWarps * 32, 4) Product(Factors f) {
  StartNext();
  const int column = static_cast<int>(blockIdx.x) * kBlockColumns + Warp() * kWarpColumns;
  const float* columns[kWarpColumns];
#pragma unroll
  for (int c = 0; c < kWarpColumns; ++c)  // behind the last column the last one again
    columns[c] = f.weight + static_cast<int64_t>(min(column + c, f.columns - 1)) * f.depth;
  Slab slab;
  Load(columns, 0, f.depth, slab);
  WaitForPrevious();
  auto* rows = reinterpret_cast<float*>(DynamicShared());
  const int first = static_cast<int>(blockIdx.y) * kTileTokens, stride = RowStride(f.depth);
  TakeRows(f, first, rows);
  __syncthreads();
  float sums[kSums] = {};
  for (int from = 0; from < f.depth; from += kSlabDepth) {
    Slab next;
    if (from + kSlabDepth < f.depth) Load(columns, from + kSlabDepth, f.depth, next);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        const float value = rows[t * stride + from + 32 * s + Lane()];
#pragma unroll
        for (int c = 0; c < kWarpColumns; ++c)
          sums[c * kTileTokens + t] = __fmaf_rn(slab.weights[s][c], value, sums[c * kTileTokens + t]);
      }
    }
    slab = next;
  }
  SumForLanes<kSums / 2>(sums);
  const int own = column + Lane() / kTileTokens, token = first + Lane() % kTileTokens;
  if (own >= f.columns || token >= f.tokens) return;
  float value = sums[0] + f.bias[own];
  if constexpr (kInto == Into::kSilu) value = value / (1 + expf(-value));
  float* to = f.to + static_cast<int64_t>(token) * f.columns + own;
  *to = kInto == Into::kAdd ? *to + value : value;
}

// Turns the queries where they are, and writes turned keys, and values, into their pages. A block per token.
__global__ void __launch_bounds__(kTurnThreads) TurnAndStore(RouterModel model, RouterCall call) {
  StartNext();
  WaitForPrevious();
  const int token = static_cast<int>(blockIdx.x), width = model.width, dim = width / model.heads, half = dim / 2;
  const int position = call.positions[token], slot = position % kRouterPage;
  const int64_t page = call.pages[static_cast<int64_t>(call.texts[token]) * call.table + position / kRouterPage];
  float* queries = call.qkv + static_cast<int64_t>(token) * 3 * width;
  for (int i = static_cast<int>(threadIdx.x); i < width / 2; i += kTurnThreads) {
    const int head = i / half, low = i % half, at = head * dim + low;
    float sine, cosine;
    sincosf(__fmul_rn(static_cast<float>(position), model.frequencies[low]), &sine, &cosine);
    const auto turn = [&](const float* from, float* to, int64_t step) {
      const float a = from[at], b = from[at + half];
      to[0] = __fmaf_rn(a, cosine, __fmul_rn(-b, sine));
      to[half * step] = __fmaf_rn(b, cosine, __fmul_rn(a, sine));
    };
    turn(queries, queries + at, 1);
    const int64_t of_head = (page * model.heads + head) * dim * kRouterPage;
    turn(queries + width, call.keys + of_head + low * kRouterPage + slot, kRouterPage);
    for (const int d : {low, low + half}) call.values[of_head + slot * dim + d] = queries[2 * width + head * dim + d];
  }
}

// What a warp has of the values of a token, weighted by exp(score - top).
template <int kPerLane>
struct Mix {
  float top = -INFINITY, weight = 0;  // weight: of the positions of this lane
  float values[kPerLane] = {};
};

// Adds the first `seen` positions of a page. query: [dim] in shared memory.
template <int kPerLane>
__device__ __forceinline__ void AddPage(const float* query, const float* keys, const float* values, int dim, int seen,
                                        float scale, Mix<kPerLane>& mix) {
  const int slot = Lane() % kRouterPage, part = Lane() / kRouterPage;  // two lanes share a position
  float score = 0;
#pragma unroll 16
  for (int d = part; d < dim; d += 2) score = __fmaf_rn(query[d], keys[d * kRouterPage + slot], score);
  score = __fmul_rn(score + __shfl_xor_sync(~0U, score, kRouterPage), scale);
  const bool visible = slot < seen;  // others may hold anything
  const float top = fmaxf(mix.top, MaxOfHalf(visible ? score : -INFINITY)), faded = expf(mix.top - top);
  const float weight = visible ? expf(score - top) : 0;
  mix.top = top;
  mix.weight = __fmaf_rn(mix.weight, faded, part == 0 ? weight : 0);
#pragma unroll
  for (float& value : mix.values) value = __fmul_rn(value, faded);
#pragma unroll 4
  for (int s = 0; s < seen; ++s) {
    const float share = __shfl_sync(~0U, weight, s);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (const int d = Lane() + 32 * i; d < dim) mix.values[i] = __fmaf_rn(share, values[s * dim + d], mix.values[i]);
  }
}

// A block per head and token; warp w takes pages w, w + 8, ... in ascending order.
template <int kPerLane>
__global__ void __launch_bounds__(kAttendWarps * 32) Attend(RouterModel model, RouterCall call) {
  StartNext();
  WaitForPrevious();
  const int head = static_cast<int>(blockIdx.x), token = static_cast<int>(blockIdx.y);
  const int dim = model.width / model.heads, last = call.positions[token];
  auto* query = reinterpret_cast<float*>(DynamicShared());
  float *tops = query + dim, *weights = tops + kAttendWarps, *mixed = weights + kAttendWarps;
  for (int d = static_cast<int>(threadIdx.x); d < dim; d += kAttendWarps * 32)
    query[d] = call.qkv[static_cast<int64_t>(token) * 3 * model.width + head * dim + d];
  __syncthreads();
  const int32_t* pages = call.pages + static_cast<int64_t>(call.texts[token]) * call.table;
  Mix<kPerLane> mix;
  for (int page = Warp(); page <= last / kRouterPage; page += kAttendWarps) {
    const int64_t at = (static_cast<int64_t>(pages[page]) * model.heads + head) * dim * kRouterPage;
    AddPage(query, call.keys + at, call.values + at, dim, min(kRouterPage, last + 1 - page * kRouterPage), model.scale,
            mix);
  }
  mix.weight = SumOfWarp(mix.weight);
  if (Lane() == 0) tops[Warp()] = mix.top, weights[Warp()] = mix.weight;
  for (int i = 0; i < kPerLane; ++i)
    if (const int d = Lane() + 32 * i; d < dim) mixed[Warp() * dim + d] = mix.values[i];
  __syncthreads();
  float top = tops[0];
  for (int w = 1; w < kAttendWarps; ++w) top = fmaxf(top, tops[w]);
  for (int d = static_cast<int>(threadIdx.x); d < dim; d += kAttendWarps * 32) {
    float sum = 0, weight = 0;
    for (int w = 0; w < kAttendWarps; ++w) {
      const float share = expf(tops[w] - top);  // 0 of a warp without a page
      sum = __fmaf_rn(share, mixed[w * dim + d], sum);
      weight = __fmaf_rn(share, weights[w], weight);
    }
    call.inner[static_cast<int64_t>(token) * model.width + head * dim + d] = sum / weight;
  }
}

template <Into kInto>
cudaError_t LaunchProduct(const Factors& f, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(CeilDiv(f.columns, kBlockColumns)),
                    static_cast<unsigned>(CeilDiv(f.tokens, kTileTokens)));
  const BlockShape shape{.cluster = 1, .shared = kTileTokens * RowStride(f.depth) * 4};
  return LaunchChained(Product<kInto>, blocks, kProductWarps * 32, shape, stream, f);
}

template <int kPerLane>
cudaError_t AttendWith(const RouterModel& model, const RouterCall& call, cudaStream_t stream) {
  const int dim = model.width / model.heads;
  const dim3 blocks(static_cast<unsigned>(model.heads), static_cast<unsigned>(call.tokens));
  const BlockShape shape{.cluster = 1, .shared = (dim + kAttendWarps * (dim + 2)) * 4};
  return LaunchChained(Attend<kPerLane>, blocks, kAttendWarps * 32, shape, stream, model, call);
}

cudaError_t AttendAll(const RouterModel& model, const RouterCall& call, cudaStream_t stream) {
  const auto blocks = dim3(static_cast<unsigned>(call.tokens));
  if (auto bad = LaunchChained(TurnAndStore, blocks, kTurnThreads, {}, stream, model, call); bad != cudaSuccess)
    return bad;
  const int dim = model.width / model.heads;
  if (dim <= 32) return AttendWith<1>(model, call, stream);
  if (dim <= 64) return AttendWith<2>(model, call, stream);
  if (dim <= 128) return AttendWith<4>(model, call, stream);
  return AttendWith<kRouterHeadDimMax / 32>(model, call, stream);
}

}  // namespace

cudaError_t RunRouter(const RouterModel& model, const RouterCall& call, cudaStream_t stream) {
  const int width = model.width;
  if (call.tokens < 1 || width < 1 || width > kRouterWidthMax || model.heads < 1 || width % (2 * model.heads) != 0 ||
      width / model.heads > kRouterHeadDimMax || model.experts < 1)
    return cudaErrorInvalidValue;
  const auto factors = [&](const float* x, const float* norm, const float* weight, const float* bias, float* to,
                           int columns) {
    return Factors{x, norm, model.eps, weight, bias, to, width, columns, call.tokens};
  };
  const auto blocks = dim3(static_cast<unsigned>(call.tokens));
  cudaError_t status = LaunchChained(Gather, blocks, kTurnThreads, {}, stream, model, call.ids, call.x);
  const auto then = [&status](const auto& launch) {
    if (status == cudaSuccess) status = launch();
  };
  if (model.qkv != nullptr) {
    const auto qkv = factors(call.x, model.attn_norm, model.qkv, model.qkv_bias, call.qkv, 3 * width);
    then([&] { return LaunchProduct<Into::kStore>(qkv, stream); });
    then([&] { return AttendAll(model, call, stream); });
    const auto o = factors(call.inner, nullptr, model.o, model.o_bias, call.x, width);
    then([&] { return LaunchProduct<Into::kAdd>(o, stream); });
  }
  const auto up = factors(call.x, model.mlp_norm, model.w1, model.w1_bias, call.inner, width);
  const auto down = factors(call.inner, nullptr, model.w2, model.w2_bias, call.x, width);
  const auto head = factors(call.x, model.norm, model.head, model.head_bias, call.logits, model.experts);
  then([&] { return LaunchProduct<Into::kSilu>(up, stream); });
  then([&] { return LaunchProduct<Into::kAdd>(down, stream); });
  then([&] { return LaunchProduct<Into::kStore>(head, stream); });
  return status;
}

}  // namespace outrider::kernels::cuda
