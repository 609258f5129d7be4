#pragma once
// The second product of the FFN over channel records:
//
//   y [token, output] = sum over wanted channels of hidden [token, channel] * down [channel] [output]
//
// A cluster of two blocks has 64 outputs. Each of their kDecodeChains warps has a fixed range of the stored order,
// takes its groups of 16 channels one after another, skips what nobody wants, and keeps its sums in registers. The
// warps of a block, then the two blocks, are summed one after another. Channels that a token does not have add zeros:
// its bits depend on its own channels only. (Larger clusters would sum more of the order, but do not fill all
// multiprocessors; ranges that lie apart would touch more pages of memory at a time.)
#include "kernels/cuda/following.cuh"
#include "kernels/cuda/forms.cuh"
#include "kernels/cuda/live.cuh"
#include "kernels/cuda/residual.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/tied_ffn.h"

namespace outrider::kernels::cuda {

constexpr int kParts = 2;
constexpr int kColumnOutputs = 64;
constexpr int kOwnOutputs = kColumnOutputs / kParts;  // that a block finishes

struct ColumnsCall {
  const uint8_t* columns = nullptr;  // down column of channel 0
  Live live{nullptr, 0};
  const Bf16* hidden = nullptr;  // [tokens, padded]
  Residual residual;             // y is added to it; x null: y is stored
  Bf16* y = nullptr;             // bf16 [tokens, width]
  int channels = 0, padded = 0, width = 0, tokens = 0;
  Following following;
};

// The groups of one warp, one after another.
class Groups {
 public:
  __device__ Groups(const uint16_t* masks, int begin, int end) : masks_(masks), end_(end), next_(begin) { Fetch(); }
  // False: no more. mask: the wanted channels of `group`.
  __device__ __forceinline__ bool Next(int& group, unsigned& mask) {
    while (alive_ == 0) {
      if (next_ >= end_) return false;
      Fetch();
    }
    const int i = __ffs(static_cast<int>(alive_)) - 1;
    alive_ &= alive_ - 1;
    group = base_ + i;
    mask = __shfl_sync(~0U, own_, i);
    return true;
  }

 private:
  // Masks of the next 32 groups, one a lane.
  __device__ void Fetch() {
    base_ = next_;
    own_ = base_ + Lane() < end_ ? masks_[base_ + Lane()] : 0;
    alive_ = __ballot_sync(~0U, own_ != 0);
    next_ += 32;
  }

  const uint16_t* masks_;
  int end_, next_, base_ = 0;
  unsigned own_ = 0, alive_ = 0;
};

// A group under way.
struct Group {
  int at = -1;        // its number; -1: none
  unsigned mask = 0;  // which of the lane's four channels are wanted
  uint4 rows[4];      // 8 outputs of each
};

__device__ __forceinline__ void LoadColumns(const ColumnsCall& call, Groups& groups, int output, Group& group) {
  const int first = Lane() % 4 * 4;
  if (!groups.Next(group.at, group.mask)) group.at = -1;
  group.mask = group.at < 0 ? 0 : group.mask >> first & 15;
  const int64_t channel = static_cast<int64_t>(max(group.at, 0)) * kGroup + first;
  const uint8_t* from = call.columns + channel * 6 * call.width + output * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) group.rows[i] = LoadWeights(from + i * 6 * call.width, (group.mask >> i & 1) != 0);
}

// Sends the next `ahead` groups into the second cache: four lanes have 128 bytes of a channel. The walk stays where it
// is.
__device__ __forceinline__ void PrefetchColumns(const ColumnsCall& call, Groups groups, int first_output, int ahead) {
  int at = 0;
  unsigned mask = 0;
#pragma unroll 1
  for (int i = 0; i < ahead && groups.Next(at, mask); ++i) {
#pragma unroll
    for (int j = 0; j < kGroup; j += 8) {
      const int own = j + Lane() / 4;
      const int64_t channel = static_cast<int64_t>(at) * kGroup + own;
      const uint8_t* from = call.columns + channel * 6 * call.width + first_output * 2 + Lane() % 4 * 32;
      if ((mask >> own & 1) != 0) Prefetch(from);
    }
  }
}

// Stale numbers of channels that nobody wants may be anything; they become zeros.
template <int kTiles>
__device__ __forceinline__ void LoadHidden(const ColumnsCall& call, const Group& group, uint2 (&hidden)[kTiles]) {
  const unsigned m = group.mask;
  const uint32_t low = (m & 1 ? 0xffffU : 0) | (m & 2 ? 0xffff0000U : 0);
  const uint32_t high = (m & 4 ? 0xffffU : 0) | (m & 8 ? 0xffff0000U : 0);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int token = n * 8 + Lane() / 4;
    const Bf16* at = call.hidden + static_cast<int64_t>(token) * call.padded + group.at * kGroup + Lane() % 4 * 4;
    const uint2 h = LoadResult8(at, m != 0 && token < call.tokens);
    hidden[n] = {h.x & low, h.y & high};
  }
}

// Number `j` of each of two rows as one pair.
__device__ __forceinline__ uint32_t Pair(uint4 low, uint4 high, int j) {
  const uint32_t l = j < 2 ? low.x : j < 4 ? low.y : j < 6 ? low.z : low.w;
  const uint32_t h = j < 2 ? high.x : j < 4 ? high.y : j < 6 ? high.z : high.w;
  return __byte_perm(l, h, j % 2 == 0 ? 0x5410 : 0x7632);
}

template <int kTiles>
__device__ __forceinline__ void AddGroup(const Group& group, const uint2 (&hidden)[kTiles],
                                         float (&sums)[4][kTiles][4]) {
  const uint4(&rows)[4] = group.rows;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint32_t a0 = Pair(rows[0], rows[1], 2 * j), a1 = Pair(rows[0], rows[1], 2 * j + 1);
    const uint32_t a2 = Pair(rows[2], rows[3], 2 * j), a3 = Pair(rows[2], rows[3], 2 * j + 1);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) Multiply(sums[j][n], a0, a1, a2, a3, hidden[n].x, hidden[n].y);
  }
}

// Sums over one chain. With one place for hidden numbers, those of the next group are fetched while other warps add.
template <int kTiles, int kGroups, int kHiddens, int kAhead>
__device__ __forceinline__ void WalkGroups(const ColumnsCall& call, int chain, int chains, int output,
                                           float (&sums)[4][kTiles][4]) {
  static_assert(kHiddens == kGroups || kHiddens == 1);
  const int all = CeilDiv(call.channels, kGroup);
  Groups list(call.live.masks, all * chain / chains, all * (chain + 1) / chains);
  Group groups[kGroups];
  uint2 hidden[kHiddens][kTiles];
#pragma unroll
  for (int i = 0; i < kGroups; ++i) LoadColumns(call, list, output, groups[i]);
  PrefetchColumns(call, list, output / kColumnOutputs * kColumnOutputs, kAhead);
  WaitForPrevious();
#pragma unroll
  for (int i = 0; i < kHiddens; ++i) LoadHidden(call, groups[i], hidden[i]);
  while (true) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      if (groups[i].at < 0) return;
      AddGroup(groups[i], hidden[i % kHiddens], sums);
      if constexpr (kHiddens < kGroups) LoadHidden(call, groups[(i + 1) % kGroups], hidden[0]);
      LoadColumns(call, list, output, groups[i]);
      if constexpr (kHiddens == kGroups) LoadHidden(call, groups[i], hidden[i]);
    }
  }
}

// Where four numbers of a token lie among its kColumnOutputs: no two lanes of a store meet in a bank.
__device__ __forceinline__ int SpreadFour(int token, int output) {
  return output ^ ((token >> 1 & 1) * 4 + (token >> 2 & 1) * 16);
}

template <int kTiles, int kChains>
using ColumnSums = float[kChains][kTiles * 8][kColumnOutputs];

// Sums of the block's chains into `block`; `chains` is memory for them.
template <int kTiles, int kChains>
__device__ __forceinline__ void JoinChains(const float (&sums)[4][kTiles][4], ColumnSums<kTiles, kChains>& chains,
                                           float (*block)[kColumnOutputs]) {
  const int output = Lane() / 4 * 8;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = n * 8 + Lane() % 4 * 2 + i;
      float* to = chains[Warp()][token];
      *reinterpret_cast<float4*>(to + SpreadFour(token, output)) = {sums[0][n][i], sums[0][n][i + 2], sums[1][n][i],
                                                                    sums[1][n][i + 2]};
      *reinterpret_cast<float4*>(to + SpreadFour(token, output + 4)) = {sums[2][n][i], sums[2][n][i + 2], sums[3][n][i],
                                                                        sums[3][n][i + 2]};
    }
  }
  __syncthreads();
  constexpr int kFours = kColumnOutputs / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kTiles * 8 * kFours; i += kChains * 32) {
    const int token = i / kFours, four = i % kFours * 4;
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int c = 0; c < kChains; ++c) {
      const float4 one = *reinterpret_cast<const float4*>(&chains[c][token][SpreadFour(token, four)]);
      sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
    }
    *reinterpret_cast<float4*>(&block[token][four]) = sum;
  }
}

// The block's own outputs, a warp for each token: the sums of both blocks, with what was there before.
template <int kTiles, int kChains>
__device__ __forceinline__ void FinishColumns(const ColumnsCall& call, int part, int output,
                                              const Before (&before)[CeilDiv(kTiles * 8, kChains)],
                                              const float (*block)[kColumnOutputs]) {
#pragma unroll
  for (int i = 0; i < CeilDiv(kTiles * 8, kChains); ++i) {
    const int token = i * kChains + Warp();
    if (token >= call.tokens) return;
    float sum = 0;
    for (int p = 0; p < kParts; ++p) sum += *OfBlock(&block[token][part * kOwnOutputs + Lane()], p);
    if (call.residual.x == nullptr) {
      call.y[static_cast<int64_t>(token) * call.width + output] = __float2bfloat16(sum);
      continue;
    }
    float square = StoreResidual(call.residual, token, output, sum + before[i].x, before[i].weight);
    for (int distance = 16; distance > 0; distance /= 2) square += __shfl_xor_sync(~0U, square, distance);
    if (Lane() == 0) call.residual.squares[token * kSquaresMax + blockIdx.x] = square;
  }
}

template <int kTiles, int kGroups, int kHiddens, int kAhead, int kChains>
__global__ void __launch_bounds__(kChains * 32, 1) Columns(ColumnsCall call) {
  static_assert(kOwnOutputs == 32);
  __shared__ __align__(16) float block[kTiles * 8][kColumnOutputs];
  const int part = static_cast<int>(blockIdx.x) % kParts;
  const int first = static_cast<int>(blockIdx.x) / kParts * kColumnOutputs;
  StartNext();
  float sums[4][kTiles][4] = {};
  WalkGroups<kTiles, kGroups, kHiddens, kAhead>(call, part * kChains + Warp(), kParts * kChains, first + Lane() / 4 * 8,
                                                sums);
  if constexpr (kTiles > 2) SendFor(call.following, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
  const int output = first + part * kOwnOutputs + Lane();
  Before before[CeilDiv(kTiles * 8, kChains)];
#pragma unroll
  for (int i = 0; i < CeilDiv(kTiles * 8, kChains); ++i) {
    const int token = i * kChains + Warp();
    if (call.residual.x != nullptr && token < call.tokens) before[i] = FetchResidual(call.residual, token, output);
  }
  JoinChains<kTiles, kChains>(sums, *reinterpret_cast<ColumnSums<kTiles, kChains>*>(DynamicShared()), block);
  SyncCluster();
  FinishColumns<kTiles, kChains>(call, part, output, before, block);
  SyncCluster();  // nobody ends while others read
}

// Parts of the sums of squares that Columns leaves.
inline int ColumnsSquares(int width) { return width / kOwnOutputs; }

template <int kTiles, ColumnForm kForm>
cudaError_t LaunchColumns(const ColumnsCall& call, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(call.width / kColumnOutputs * kParts);
  constexpr int kChains = kDecodeChains / kParts;
  const BlockShape shape = {kParts, static_cast<int>(sizeof(ColumnSums<kTiles, kChains>))};
  const auto kernel = Columns<kTiles, kForm.groups, kForm.hiddens, kForm.ahead, kChains>;
  return LaunchChained(kernel, dim3(blocks), kChains * 32, shape, stream, call);
}

inline cudaError_t LaunchColumns(const ColumnsCall& call, cudaStream_t stream) {
  if (call.tokens <= 8) return LaunchColumns<1, kColumnForms[0]>(call, stream);
  if (call.tokens <= 16) return LaunchColumns<2, kColumnForms[1]>(call, stream);
  return LaunchColumns<4, kColumnForms[2]>(call, stream);
}

}  // namespace outrider::kernels::cuda
