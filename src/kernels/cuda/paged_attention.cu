// Three launches:
//
//   Store  rotary angles; keys and values into their pages
//   Parts  softmax sums over one part of the pages, per row and head; a warp has four tokens of each page
//   Join   the parts one after another
#include <cuda_bf16.h>

#include "kernels/cuda/paged_attention.h"

namespace outrider::kernels::cuda {
namespace {

using Bf16 = __nv_bfloat16;
constexpr int kPage = kAttentionPageTokens;
constexpr int kWarps = 4;
constexpr int kEach = kPage / kWarps;  // tokens of a page that one warp reads
constexpr float kNothing = -1e30F;     // maximum of no score; its difference to itself is a number

// One block per row and head of queries, keys or values; a thread turns one plane.
__global__ void Store(PagedAttention call) {
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y),
            pair = static_cast<int>(threadIdx.x);
  const int half = call.head_dim / 2, all = call.heads + 2 * call.kv_heads;
  auto* from = static_cast<Bf16*>(call.qkv) + (static_cast<int64_t>(row) * all + head) * call.head_dim;
  float a = __bfloat162float(from[pair]), b = __bfloat162float(from[pair + half]);
  if (head < call.heads + call.kv_heads) {
    const float cos = call.cos[row * half + pair], sin = call.sin[row * half + pair];
    const float turned = a * cos - b * sin;
    b = b * cos + a * sin;
    a = turned;
  }
  Bf16* to = from;
  if (head >= call.heads) {
    const bool is_key = head < call.heads + call.kv_heads;
    const int kv = head - call.heads - (is_key ? 0 : call.kv_heads);
    const int position = call.positions[row];
    const int64_t page = call.pages[static_cast<int64_t>(row) * call.table + position / kPage];
    to = static_cast<Bf16*>(is_key ? call.keys : call.values) +
         ((page * call.kv_heads + kv) * kPage + position % kPage) * call.head_dim;
  }
  to[pair] = __float2bfloat16(a);
  to[pair + half] = __float2bfloat16(b);
}

// kDims numbers of a row that lie side by side, lane by lane.
template <int kDims>
__device__ __forceinline__ void Load(const Bf16* row, float (&to)[kDims]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kDims == 1) {
    to[0] = __bfloat162float(row[lane]);
  } else {
    struct alignas(kDims * 2) Together {
      __nv_bfloat162 pairs[kDims / 2];
    };
    const Together from = *reinterpret_cast<const Together*>(row + lane * kDims);
#pragma unroll
    for (int i = 0; i < kDims / 2; ++i) {
      const float2 two = __bfloat1622float2(from.pairs[i]);
      to[2 * i] = two.x;
      to[2 * i + 1] = two.y;
    }
  }
}

// Of one softmax: largest score, sum of weights, weighted sum of values; a lane has kDims numbers of the latter.
template <int kDims>
struct Sums {
  float most = kNothing, total = 0, mixed[kDims] = {};

  __device__ __forceinline__ void Add(float other_most, float other_total, const float (&other)[kDims]) {
    const float top = fmaxf(most, other_most);
    const float mine = __expf(most - top), theirs = __expf(other_most - top);
    total = total * mine + other_total * theirs;
#pragma unroll
    for (int i = 0; i < kDims; ++i) mixed[i] = mixed[i] * mine + other[i] * theirs;
    most = top;
  }
};

// Four tokens at `keys` and `values`; those outside of [first, last] do not count.
template <int kDims>
__device__ __forceinline__ void AddTokens(const PagedAttention& call, const float (&query)[kDims], const Bf16* keys,
                                          const Bf16* values, int at, int first, int last, Sums<kDims>& sums) {
  float k[kEach][kDims], v[kEach][kDims], scores[kEach];
#pragma unroll
  for (int t = 0; t < kEach; ++t) {
    Load<kDims>(keys + t * call.head_dim, k[t]);
    Load<kDims>(values + t * call.head_dim, v[t]);
  }
#pragma unroll
  for (int t = 0; t < kEach; ++t) {
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kDims; ++i) dot += query[i] * k[t][i];
    for (int step = 16; step > 0; step /= 2) dot += __shfl_xor_sync(~0U, dot, step);
    scores[t] = dot * call.scale;
  }
#pragma unroll
  for (int t = 0; t < kEach; ++t)
    if (at + t >= first && at + t <= last) sums.Add(scores[t], 1, v[t]);
}

template <int kDims>
__global__ void __launch_bounds__(kWarps * 32) Parts(PagedAttention call) {
  constexpr int kDim = kDims * 32;
  __shared__ float shared[kWarps][kDim + 2];
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y),
            part = static_cast<int>(blockIdx.z);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int kv = head / (call.heads / call.kv_heads), last = call.positions[row];
  const int first = call.window > 0 ? max(0, last - call.window + 1) : 0;
  const int first_page = first / kPage, pages = last / kPage + 1 - first_page;
  const int all = call.heads + 2 * call.kv_heads;
  float query[kDims];
  Load<kDims>(static_cast<const Bf16*>(call.qkv) + (static_cast<int64_t>(row) * all + head) * kDim, query);
  Sums<kDims> sums;
  const int end = first_page + pages * (part + 1) / kAttentionSplits;
  for (int p = first_page + pages * part / kAttentionSplits; p < end; ++p) {
    const int64_t page = call.pages[static_cast<int64_t>(row) * call.table + p];
    const int64_t at = ((page * call.kv_heads + kv) * kPage + warp * kEach) * kDim;
    AddTokens<kDims>(call, query, static_cast<const Bf16*>(call.keys) + at, static_cast<const Bf16*>(call.values) + at,
                     p * kPage + warp * kEach, first, last, sums);
  }
  for (int i = 0; i < kDims; ++i) shared[warp][lane * kDims + i] = sums.mixed[i];
  if (lane == 0) {
    shared[warp][kDim] = sums.most;
    shared[warp][kDim + 1] = sums.total;
  }
  __syncthreads();
  if (warp != 0) return;
  for (int w = 1; w < kWarps; ++w) {
    float other[kDims];
    for (int i = 0; i < kDims; ++i) other[i] = shared[w][lane * kDims + i];
    sums.Add(shared[w][kDim], shared[w][kDim + 1], other);
  }
  float* to = call.scratch + ((static_cast<int64_t>(row) * call.heads + head) * kAttentionSplits + part) * (kDim + 2);
  for (int i = 0; i < kDims; ++i) to[lane * kDims + i] = sums.mixed[i];
  if (lane == 0) {
    to[kDim] = sums.most;
    to[kDim + 1] = sums.total;
  }
}

template <int kDims>
__global__ void Join(PagedAttention call) {
  constexpr int kDim = kDims * 32;
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t at = static_cast<int64_t>(row) * call.heads + head;
  Sums<kDims> sums;
  for (int part = 0; part < kAttentionSplits; ++part) {
    const float* from = call.scratch + (at * kAttentionSplits + part) * (kDim + 2);
    float other[kDims];
    for (int i = 0; i < kDims; ++i) other[i] = from[lane * kDims + i];
    sums.Add(from[kDim], from[kDim + 1], other);
  }
  auto* to = static_cast<Bf16*>(call.out) + at * kDim + lane * kDims;
  for (int i = 0; i < kDims; ++i) to[i] = __float2bfloat16(sums.mixed[i] / sums.total);
}

template <int kDims>
cudaError_t Launch(const PagedAttention& call, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(call.rows), heads = static_cast<unsigned>(call.heads);
  const dim3 all(rows, heads + 2 * static_cast<unsigned>(call.kv_heads));
  Store<<<all, static_cast<unsigned>(call.head_dim / 2), 0, stream>>>(call);
  Parts<kDims><<<dim3(rows, heads, kAttentionSplits), kWarps * 32, 0, stream>>>(call);
  Join<kDims><<<dim3(rows, heads), 32, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace

int64_t AttentionFloats(int rows, int heads, int head_dim) {
  return static_cast<int64_t>(rows) * heads * kAttentionSplits * (head_dim + 2);
}

cudaError_t Attend(const PagedAttention& call, cudaStream_t stream) {
  const bool fits = call.rows > 0 && call.kv_heads > 0 && call.heads > 0 && call.heads % call.kv_heads == 0;
  if (!fits) return cudaErrorInvalidValue;
  switch (call.head_dim) {
    case 32:
      return Launch<1>(call, stream);
    case 64:
      return Launch<2>(call, stream);
    case 128:
      return Launch<4>(call, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace outrider::kernels::cuda
