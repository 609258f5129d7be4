#pragma once
// The product of product.cuh for 17 to 32 tokens, which there would be read from the second cache as often as there are
// blocks, as many bytes as weights. A cluster of two blocks shares rows here: each has four of the eight chains of the
// summed dimension, keeps its half of the tokens in shared memory, and takes twice as many rows. Chains and the order
// in which they are joined are those of product.cuh, and so are the bits.
//
// Four warps have a chain each, twice: even tiles of the cluster's rows and odd ones. A block finishes the tiles of one
// kind; the sums that it has of the other kind go into its partner's memory.
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/tied_ffn.h"

namespace outrider::kernels::cuda {

constexpr int kShare = 2;                             // blocks of a cluster
constexpr int kOwnChains = kSplit / kShare;           // of a block
constexpr int kPartBytes = kOwnChains * kBlockK * 2;  // that a block has of each kShare * kPartBytes of a token
constexpr int kSharedTokens = kDecodeTokensMax;
constexpr int kSharedTiles = kSharedTokens / 8;

inline int SharedClusters(int multiprocessors) { return multiprocessors / kShare; }

// Half of the tokens in shared memory. The pitch puts neighbouring tokens into other banks.
struct SharedTokens {
  int parts, pitch;

  __host__ __device__ explicit SharedTokens(int depth)
      : parts(CeilDiv(depth * 2, kShare * kPartBytes)), pitch(parts * kPartBytes + 64) {}
  __host__ __device__ int bytes() const { return kSharedTokens * pitch; }

  // Parts [begin, end); zeros where there is no token or depth.
  __device__ __forceinline__ void Copy(const Inputs& in, int rank, int begin, int end, uint8_t* to) const {
    const int lane = Lane() * 16;
    for (int part = begin; part < min(end, parts); ++part) {
      const int byte = (part * kShare + rank) * kPartBytes + lane;
#pragma unroll
      for (int i = 0; i < kSharedTokens / kSplit; ++i) {
        const int token = i * kSplit + Warp();
        const bool valid = token < in.tokens && byte < in.depth * 2;
        CopyToShared(to + token * pitch + part * kPartBytes + lane, in.x + (valid ? token * in.depth * 2 + byte : 0),
                     valid);
      }
    }
  }
};
static_assert(kPartBytes == 32 * 16);

// Rows of a cluster that are under way together: tile t of a warp is tile 2 t + its kind.
template <int kRowTiles>
struct SharedRows {
  uint32_t lines[kRowTiles];  // as in Place
  unsigned valid = 0;

  template <class Outputs>
  __device__ __forceinline__ void Find(const Outputs& outputs, int begin, int end) {
    valid = 0;
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      const int unit = begin + (t * kShare + Warp() / kOwnChains) * kTilePairs + Lane() / 4;
      lines[t] = outputs.Row(unit < end ? unit : 0);
      valid |= (unit < end ? 1U : 0U) << t;
    }
  }
};

// What of the walk does not change: where the lane reads.
struct SharedPlace {
  const uint8_t* base;  // of all rows, at the lane's place in its first block
  uint32_t second;      // as in Place
  int end;              // bytes of a row from there
  const uint8_t* x;     // in shared memory: the lane's token among the first 8, at the same place
  int pitch;
};

template <int kRowTiles>
using RowHalf = uint4[kRowTiles][2];

template <int kRowTiles>
__device__ __forceinline__ void LoadTile(const SharedPlace& place, const SharedRows<kRowTiles>& rows, int t, int byte,
                                         RowHalf<kRowTiles>& half) {
  const bool valid = byte < place.end && (rows.valid >> t & 1) != 0;
  const uint8_t* at = place.base + byte + uint64_t{rows.lines[t]} * 16;
  half[t][0] = LoadWeights(at, valid);
  half[t][1] = LoadWeights(at + uint64_t{place.second} * 16, valid);
}

template <int kRowTiles>
__device__ __forceinline__ void PrefetchTiles(const SharedPlace& place, const SharedRows<kRowTiles>& rows, int block) {
  const int byte = HalfAt(2 * block) + Lane() % 4 * 16;
  if (byte >= place.end) return;
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    if ((rows.valid >> t & 1) == 0) continue;
    const uint8_t* at = place.base + byte + uint64_t{rows.lines[t]} * 16;
    Prefetch(at);
    Prefetch(at + uint64_t{place.second} * 16);
  }
}

// Adds half `i`, and refills each tile with half `byte` of `next` as soon as it is read.
template <int kRowTiles>
__device__ __forceinline__ void Turn(const SharedPlace& place, int i, const SharedRows<kRowTiles>& next, int byte,
                                     RowHalf<kRowTiles>& half, Sums<kSharedTiles, kRowTiles>& sums) {
  uint4 x[kSharedTiles];
  const uint8_t* from = place.x + i / 2 * kPartBytes + i % 2 * 64;
#pragma unroll
  for (int n = 0; n < kSharedTiles; ++n) x[n] = *reinterpret_cast<const uint4*>(from + n * 8 * place.pitch);
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    const uint4 a = half[t][0], b = half[t][1];
#pragma unroll
    for (int n = 0; n < kSharedTiles; ++n) {
      Multiply(sums[t][n], a.x, b.x, a.y, b.y, x[n].x, x[n].y);
      Multiply(sums[t][n], a.z, b.z, a.w, b.w, x[n].z, x[n].w);
    }
    LoadTile<kRowTiles>(place, next, t, byte, half);
  }
}

// Where number `token` of row `row` of a tile lies among its kSharedTokens: no two lanes of a store or a load of
// neighbours meet in a bank.
__device__ __forceinline__ int Spread(int row, int token) { return token ^ (row % 4 * 8 + row / 4 % 2 * 4); }

template <int kRowTiles>
using ChainSums = float[kSplit][kRowTiles][16][kSharedTokens];

template <int kRowTiles>
__device__ __forceinline__ void GiveSums(const Sums<kSharedTiles, kRowTiles>& sums, int chain,
                                         ChainSums<kRowTiles>& to) {
  const int row = Lane() / 4, column = Lane() % 4 * 2;
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
    for (int n = 0; n < kSharedTiles; ++n) {
      const int at = Spread(row, n * 8 + column);
      *reinterpret_cast<float2*>(&to[chain][t][row][at]) = {sums[t][n][0], sums[t][n][1]};
      *reinterpret_cast<float2*>(&to[chain][t][row + 8][at]) = {sums[t][n][2], sums[t][n][3]};
    }
  }
}

// What a thread finishes: pair and token of every tile of kind `kind` in [begin, end). Eight lanes have a tile and
// token.
template <class Outputs, int kRowTiles>
struct Finish {
  typename Outputs::Fetched fetched[kRowTiles];
  int pair, token, first, end;

  __device__ __forceinline__ Finish(int kind, int begin, int last)
      : pair(static_cast<int>(threadIdx.x) % kTilePairs),
        token(static_cast<int>(threadIdx.x) / kTilePairs),
        first(begin + kind * kTilePairs),
        end(last) {
    static_assert(kProductThreads == kTilePairs * kSharedTokens);
  }
  // Fetches what the results will need.
  __device__ __forceinline__ void Fetch(const Outputs& outputs, const Inputs& in) {
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) fetched[t] = outputs.Fetch(Unit(t), token < in.tokens && Unit(t) < end, token);
  }
  __device__ __forceinline__ int Tile(int t) const { return first + t * kShare * kTilePairs; }
  __device__ __forceinline__ int Unit(int t) const { return Tile(t) + pair; }

  __device__ __forceinline__ void Store(const Outputs& outputs, const Inputs& in, const ChainSums<kRowTiles>& from,
                                        const float* scales) const {
    if (token >= in.tokens) return;
    const float scale = in.squares.parts > 0 ? scales[token] : 1;
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      if (Tile(t) >= end) return;
      float a = 0, b = 0;
#pragma unroll
      for (int w = 0; w < kSplit; ++w) {
        a += from[w][t][pair][Spread(pair, token)];
        b += from[w][t][pair + 8][Spread(pair, token)];
      }
      outputs.Store(fetched[t], Unit(t), Unit(t) < end, token, __fmul_rn(a, scale), __fmul_rn(b, scale));
    }
  }
};

// The pairs of a cluster in sweeps of about equal length. kUnit pairs stay together.
template <int kUnit, int kPairs>
struct Sweeps {
  int first, last, count, each;

  __device__ explicit Sweeps(int units) : last(units) {
    const auto pieces = static_cast<unsigned>(CeilDiv(units, kUnit));
    const unsigned cluster = blockIdx.x / kShare, clusters = gridDim.x / kShare;
    first = static_cast<int>(pieces * cluster / clusters) * kUnit;
    last = min(static_cast<int>(pieces * (cluster + 1) / clusters) * kUnit, units);
    count = max(1, CeilDiv(last - first, kPairs));
    each = CeilDiv(CeilDiv(last - first, count), kUnit) * kUnit;
  }
  // Behind the last sweep: nothing.
  __device__ __forceinline__ int Begin(int sweep) const {
    return sweep < count ? min(last, first + sweep * each) : last;
  }
  __device__ __forceinline__ int End(int sweep) const { return Begin(sweep + 1); }
};

template <class Outputs>
__device__ __forceinline__ SharedPlace SharedPlaceOf(const Outputs& outputs, const Inputs& in, int rank, int pitch) {
  SharedPlace place;
  const int own = Warp() % kOwnChains * kBlockK * 2 + Lane() % 4 * 16, at = rank * kPartBytes + own;
  place.base = outputs.weight + at;
  place.second = static_cast<uint32_t>(outputs.second());
  place.end = in.depth * 2 - at;
  place.x = DynamicShared() + Lane() / 4 * pitch + own;
  place.pitch = pitch;
  return place;
}

// Loads kHalves halves, and sends for kAhead blocks behind them.
template <int kRowTiles, int kHalves, int kAhead>
__device__ __forceinline__ void LoadFirst(const SharedPlace& place, const SharedRows<kRowTiles>& rows,
                                          RowHalf<kRowTiles> (&halves)[kHalves]) {
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) LoadTile<kRowTiles>(place, rows, t, HalfAt(h), halves[h]);
  }
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) PrefetchTiles<kRowTiles>(place, rows, CeilDiv(kHalves, 2) + i);
}

// Tokens and scales. The first `soon` parts are there behind it, the others behind WaitForCopies and a meeting of the
// block.
__device__ __forceinline__ void TakeTokens(const Inputs& in, const SharedTokens& tokens, int rank, int soon,
                                           float* scales) {
  tokens.Copy(in, rank, 0, soon, DynamicShared());
  CommitCopies();
  tokens.Copy(in, rank, soon, tokens.parts, DynamicShared());
  CommitCopies();
  in.squares.FindScales<kSharedTiles>(in.tokens, scales);
  WaitForCopies<1>();
  __syncthreads();
}

// Outputs: as in product.cuh. kHalves halves of all tiles are under way; before the wait, kAhead more blocks are sent
// for. The last turn of a sweep loads the first halves of the next.
template <class Outputs, int kRowTiles, int kHalves, int kBlocks, int kAhead>
__global__ void __launch_bounds__(kProductThreads, kBlocks) SharedProduct(Outputs outputs, Inputs in) {
  __shared__ float scales[kSharedTokens];
  StartNext();
  ArriveAtCluster();
  const SharedTokens tokens(in.depth);
  auto& chains = *reinterpret_cast<ChainSums<kRowTiles>*>(DynamicShared() + tokens.bytes());
  const int rank = static_cast<int>(blockIdx.x) % kShare, kind = Warp() / kOwnChains;
  const Sweeps<Outputs::kWholeTiles ? kTilePairs : 1, kShare * kRowTiles * kTilePairs> sweeps(outputs.units());
  const SharedPlace place = SharedPlaceOf(outputs, in, rank, tokens.pitch);
  SharedRows<kRowTiles> rows, next;
  rows.Find(outputs, sweeps.Begin(0), sweeps.End(0));
  RowHalf<kRowTiles> halves[kHalves];
  LoadFirst<kRowTiles, kHalves, kAhead>(place, rows, halves);
  WaitForPrevious();
  TakeTokens(in, tokens, rank, CeilDiv(kHalves, 2), scales);
  const int turns = CeilDiv(tokens.parts * 2, kHalves);
#pragma unroll 1
  for (int sweep = 0; sweep < sweeps.count; ++sweep) {
    Sums<kSharedTiles, kRowTiles> sums = {};
    Finish<Outputs, kRowTiles> finish(rank, sweeps.Begin(sweep), sweeps.End(sweep));
    next.Find(outputs, sweeps.Begin(sweep + 1), sweeps.End(sweep + 1));
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
      if (sweep == 0 && turn == 1) {
        WaitForCopies<0>();
        __syncthreads();
      }
      const bool ends = turn + 1 == turns;
      if (ends && sweep + 1 == sweeps.count)
        SendFor(in.following, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
      if (ends) {
        rows = next;
        finish.Fetch(outputs, in);
      }
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const int i = turn * kHalves + h;  // past the end: some tokens, times zeros
        Turn<kRowTiles>(place, min(i, tokens.parts * 2 - 1), rows, HalfAt(ends ? h : i + kHalves), halves[h], sums);
      }
    }
    WaitForCluster();  // the partner has started, and has read what it got
    GiveSums<kRowTiles>(sums, rank * kOwnChains + Warp() % kOwnChains,
                        *reinterpret_cast<ChainSums<kRowTiles>*>(OfBlock(&chains[0][0][0][0], kind)));
    SyncCluster();
    finish.Store(outputs, in, chains, scales);
    if (sweep + 1 < sweeps.count) ArriveAtCluster();
  }
}

constexpr int kSharedMax = 227 * 1024;  // bytes of shared memory of a block

template <int kRowTiles>
int SharedProductBytes(int depth) {
  return SharedTokens(depth).bytes() + static_cast<int>(sizeof(ChainSums<kRowTiles>));
}

template <ProductForm kForm, class Outputs>
cudaError_t LaunchSharedProduct(const Outputs& outputs, const Inputs& in, int multiprocessors, cudaStream_t stream) {
  const auto kernel = SharedProduct<Outputs, kForm.row_tiles, kForm.halves, kForm.blocks, kForm.ahead>;
  const dim3 blocks(static_cast<unsigned>(SharedClusters(multiprocessors) * kShare));
  const BlockShape shape = {kShare, SharedProductBytes<kForm.row_tiles>(in.depth)};
  return LaunchChained(kernel, blocks, kProductThreads, shape, stream, outputs, in);
}

// kForms: of at most 8, 16 and 32 tokens; kShared: of more than 16 where a chain's tokens fit into shared memory.
template <const ProductForm (&kForms)[3], const ProductForm& kShared, class Outputs>
cudaError_t LaunchProduct(const Outputs& outputs, const Inputs& in, int multiprocessors, cudaStream_t stream,
                          bool chained = true) {
  if (in.tokens <= 8) return LaunchProduct<Outputs, 1, kForms[0]>(outputs, in, multiprocessors, stream, chained);
  if (in.tokens <= 16) return LaunchProduct<Outputs, 2, kForms[1]>(outputs, in, multiprocessors, stream, chained);
  const bool fits = SharedProductBytes<kShared.row_tiles>(in.depth) + kSharedTokens * 4 <= kSharedMax;
  if (chained && fits && multiprocessors >= kShare)
    return LaunchSharedProduct<kShared>(outputs, in, multiprocessors, stream);
  return LaunchProduct<Outputs, 4, kForms[2]>(outputs, in, multiprocessors, stream, chained);
}

}  // namespace outrider::kernels::cuda
