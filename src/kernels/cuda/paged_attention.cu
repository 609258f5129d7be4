// A warp makes the softmax sums of one part of a token's pages after another: a key is read by kDim / 8 lanes, 16 bytes
// each, and kBatch tokens of a lane are under way together. A row and head have one block, or a cluster of kClusterMax
// where there are few of them. At the end all parts are joined one after another, so the form changes no bit.
#include "kernels/cuda/paged_attention.h"

#include "kernels/cuda/following.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/turned.cuh"

namespace outrider::kernels::cuda {
namespace {

constexpr int kPage = kAttentionPageTokens;
constexpr int kWarpsMost = 8, kWarpsOfMany = 4;  // of a block: where there are few of them, and where many
constexpr int kClusterMax = 4;
constexpr int kParts = kAttentionParts;
constexpr int kBatch = 8;
constexpr int kEnding = 512;        // blocks at the end of a launch that send for what follows
constexpr int kEach = 8;            // numbers of a head that a lane has
constexpr float kNothing = -1e30F;  // maximum of no score; its difference to itself is a number

// One block per row and head of queries, keys or values; a thread turns one plane.
__global__ void Store(PagedAttention call) {
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int pair = static_cast<int>(threadIdx.x), half = call.head_dim / 2;
  const int all = call.heads + 2 * call.kv_heads;
  const auto* from = static_cast<const Bf16*>(call.qkv) + (static_cast<int64_t>(row) * all + head) * call.head_dim;
  StoreTurnedPair(call, TurnedPlaceOf(call, row, head, pair), __bfloat162float(from[pair]),
                  __bfloat162float(from[pair + half]));
}

__device__ __forceinline__ void Unpack(uint4 from, float (&to)[kEach]) {
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
  }
}

// Of one softmax: largest score, sum of weights, weighted sum of the lane's numbers of the values.
struct Sums {
  float most = kNothing, total = 0, mixed[kEach] = {};

  __device__ __forceinline__ void Scale(float top) {
    const float by = __expf(most - top);
    total = __fmul_rn(total, by);
#pragma unroll
    for (int i = 0; i < kEach; ++i) mixed[i] = __fmul_rn(mixed[i], by);
    most = top;
  }

  // Joins those of the lane `distance` away, in the same order on both.
  __device__ __forceinline__ void JoinLane(int distance) {
    Scale(fmaxf(most, __shfl_xor_sync(~0U, most, distance)));
    total += __shfl_xor_sync(~0U, total, distance);
#pragma unroll
    for (int i = 0; i < kEach; ++i) mixed[i] += __shfl_xor_sync(~0U, mixed[i], distance);
  }
};

// What a row sees: positions from first to last, on `pages` pages from first_page on.
struct Seen {
  int first, last, first_page, pages;

  __device__ Seen(const PagedAttention& call, int row) : last(call.positions[row]) {
    first = call.window > 0 ? max(0, last - call.window + 1) : 0;
    first_page = first / kPage;
    pages = last / kPage + 1 - first_page;
  }
  // Where part `part` begins, in pages from first_page on.
  __device__ int Begin(int part) const { return pages * part / kParts; }
};

// Page numbers of a row in order, fetched 32 at a time, one a lane.
class PageList {
 public:
  __device__ PageList(const PagedAttention& call, int row, const Seen& seen, int begin)
      : row_(call.pages + static_cast<int64_t>(row) * call.table + seen.first_page), pages_(seen.pages) {
    Fetch(begin);
  }
  // The same `page` in all lanes, not before `begin`.
  __device__ __forceinline__ int At(int page) {
    if (page >= base_ + 32) Fetch(page);
    return __shfl_sync(~0U, own_, page - base_);
  }

 private:
  __device__ void Fetch(int page) {
    base_ = page;
    own_ = page + Lane() < pages_ ? row_[page + Lane()] : 0;
  }

  const int32_t* row_;
  int pages_, base_ = 0, own_ = 0;
};

// One batch: kBatch times `kSide` tokens that lie side by side, from slot `slot` of a part of `end` slots on.
template <int kDim>
struct Batch {
  static constexpr int kLanes = kDim / kEach, kSide = 32 / kLanes, kTokens = kBatch * kSide;
  int64_t places[kBatch];  // of the lane's tokens in keys and values, in numbers; -1: none or not seen

  // begin, end: pages of the part; batch: how many tokens of it came before.
  __device__ __forceinline__ void Find(const PagedAttention& call, const Seen& seen, PageList& list, int kv, int begin,
                                       int end, int batch) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int slot = batch + j * kSide, page = begin + slot / kPage;  // both the same in all lanes
      const int at = slot % kPage + Lane() / kLanes, position = (seen.first_page + page) * kPage + at;
      const int64_t number = list.At(min(page, end - 1));
      places[j] = page < end && position >= seen.first && position <= seen.last
                      ? ((number * call.kv_heads + kv) * kPage + at) * kDim + Lane() % kLanes * kEach
                      : -1;
    }
  }

  __device__ __forceinline__ void Prefetch(const PagedAttention& call) const {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (places[j] < 0) continue;
      cuda::Prefetch(static_cast<const Bf16*>(call.keys) + places[j]);
      cuda::Prefetch(static_cast<const Bf16*>(call.values) + places[j]);
    }
  }

  __device__ __forceinline__ void Add(const PagedAttention& call, const float (&query)[kEach], Sums& sums) const {
    uint4 keys[kBatch], values[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int64_t place = max(places[j], int64_t{0}) * 2;
      keys[j] = LoadResult(static_cast<const uint8_t*>(call.keys) + place, places[j] >= 0);
      values[j] = LoadResult(static_cast<const uint8_t*>(call.values) + place, places[j] >= 0);
    }
    float scores[kBatch], top = sums.most;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      float key[kEach], dot = 0;
      Unpack(keys[j], key);
#pragma unroll
      for (int i = 0; i < kEach; ++i) dot = __fmaf_rn(query[i], key[i], dot);
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) dot += __shfl_xor_sync(~0U, dot, step);
      scores[j] = places[j] >= 0 ? __fmul_rn(dot, call.scale) : kNothing;
      top = fmaxf(top, scores[j]);
    }
    sums.Scale(top);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const float weight = places[j] >= 0 ? __expf(scores[j] - top) : 0;
      float value[kEach];
      Unpack(values[j], value);
      sums.total += weight;
#pragma unroll
      for (int i = 0; i < kEach; ++i) sums.mixed[i] = __fmaf_rn(weight, value[i], sums.mixed[i]);
    }
  }
};

// Sums of one part as [most, total, mixed...].
template <int kDim>
__device__ __forceinline__ void AddPart(const PagedAttention& call, const Seen& seen, PageList& list, int kv, int part,
                                        const float (&query)[kEach], float* to) {
  constexpr int kLanes = kDim / kEach;
  const int begin = seen.Begin(part), end = seen.Begin(part + 1);
  Sums sums;
  for (int batch = 0; batch < (end - begin) * kPage; batch += Batch<kDim>::kTokens) {
    Batch<kDim> tokens;
    tokens.Find(call, seen, list, kv, begin, end, batch);
    tokens.Add(call, query, sums);
  }
#pragma unroll
  for (int distance = kLanes; distance < 32; distance *= 2) sums.JoinLane(distance);
  if (Lane() >= kLanes) return;
  if (Lane() == 0) to[0] = sums.most, to[1] = sums.total;
#pragma unroll
  for (int i = 0; i < kEach; ++i) to[2 + Lane() * kEach + i] = sums.mixed[i];
}

template <int kDim, int kCluster, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 16 / kWarps) Mix(PagedAttention call) {
  constexpr int kBlockParts = kParts / kCluster, kWarpParts = kBlockParts / kWarps;
  __shared__ float parts[kBlockParts][kDim + 2];
  const int thread = static_cast<int>(threadIdx.x), rank = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.z);
  const int kv = head / (call.heads / call.kv_heads), all = call.heads + 2 * call.kv_heads;
  const Seen seen(call, row);
  const int own = Warp() * kWarpParts, first = rank * kBlockParts + own;
  PageList list(call, row, seen, seen.Begin(first));
  if (seen.Begin(first) < seen.Begin(first + 1)) {
    Batch<kDim> batch;
    batch.Find(call, seen, list, kv, seen.Begin(first), seen.Begin(first + 1), 0);
    batch.Prefetch(call);
  }
  WaitForPrevious();
  StartNext();
  const auto* queries = static_cast<const uint8_t*>(call.qkv) + (static_cast<int64_t>(row) * all + head) * kDim * 2;
  float query[kEach];
  Unpack(LoadResult(queries + thread % (kDim / kEach) * kEach * 2, true), query);
#pragma unroll 1
  for (int p = 0; p < kWarpParts; ++p) AddPart<kDim>(call, seen, list, kv, first + p, query, parts[own + p]);
  if constexpr (kCluster > 1) {
    SyncCluster();
  } else {
    const int last = static_cast<int>(gridDim.y * gridDim.z), own = row * call.heads + head;
    if (last - own <= kEnding) SendFor(call.following, last - own - 1, min(last, kEnding));
    __syncthreads();
  }
  if (rank == 0 && thread < kDim) {
    const auto of = [&](int p) { return kCluster > 1 ? OfBlock(parts[p % kBlockParts], p / kBlockParts) : parts[p]; };
    float most = kNothing, total = 0, mixed = 0;
    for (int p = 0; p < kParts; ++p) most = fmaxf(most, of(p)[0]);
    for (int p = 0; p < kParts; ++p) {
      const float by = __expf(of(p)[0] - most);
      total = __fmaf_rn(of(p)[1], by, total);
      mixed = __fmaf_rn(of(p)[2 + thread], by, mixed);
    }
    static_cast<Bf16*>(call.out)[(static_cast<int64_t>(row) * call.heads + head) * kDim + thread] =
        __float2bfloat16(mixed / total);
  }
  if constexpr (kCluster > 1) SyncCluster();  // nobody ends while others read
}

template <int kDim>
cudaError_t LaunchMix(const PagedAttention& call, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(call.heads), rows = static_cast<unsigned>(call.rows);
  constexpr unsigned kFew = 128, kMany = 512;  // blocks that leave multiprocessors idle; that fill them in small ones
  if (rows * heads <= kFew)
    return LaunchChained(Mix<kDim, kClusterMax, kWarpsMost>, dim3(kClusterMax, heads, rows), kWarpsMost * 32,
                         {kClusterMax}, stream, call);
  if (rows * heads < kMany)
    return LaunchChained(Mix<kDim, 1, kWarpsMost>, dim3(1, heads, rows), kWarpsMost * 32, {}, stream, call);
  return LaunchChained(Mix<kDim, 1, kWarpsOfMany>, dim3(1, heads, rows), kWarpsOfMany * 32, {}, stream, call);
}

bool Fits(const PagedAttention& call) {
  return call.rows > 0 && call.kv_heads > 0 && call.heads > 0 && call.heads % call.kv_heads == 0;
}

}  // namespace

cudaError_t StoreTurned(const PagedAttention& call, cudaStream_t stream) {
  if (!Fits(call) || call.head_dim % 2 != 0) return cudaErrorInvalidValue;
  const dim3 all(static_cast<unsigned>(call.rows), static_cast<unsigned>(call.heads + 2 * call.kv_heads));
  return cuda::Launch(Store, all, call.head_dim / 2, stream, call);
}

cudaError_t Attend(const PagedAttention& call, cudaStream_t stream) {
  if (!Fits(call)) return cudaErrorInvalidValue;
  switch (call.head_dim) {
    case 32:
      return LaunchMix<32>(call, stream);
    case 64:
      return LaunchMix<64>(call, stream);
    case 128:
      return LaunchMix<128>(call, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace outrider::kernels::cuda
