#pragma once
// Products of a few tokens with rows of weights, each weight read once:
//
//   result [token, row] = scale [token] * sum over k of x [token, k] * row [k]
//
// Rows come in pairs that belong together (gate and up of a channel, both coordinates of a rotary plane). A tile is 8
// pairs: the first rows are rows 0 to 7 of an m16n8k16 product, the second ones 8 to 15, so both results of a pair end
// in one thread. Which numbers of k a lane holds is free as long as both operands agree: every lane reads 16 contiguous
// bytes of two rows, and a warp takes blocks of 64 numbers, 8 warps side by side.
//
// A result is one chain per warp over its blocks, then the warps one after another: neither the number of tokens nor
// of thread blocks changes it.
#include "kernels/cuda/following.cuh"
#include "kernels/cuda/forms.cuh"
#include "kernels/cuda/residual.cuh"
#include "kernels/cuda/stream.cuh"

namespace outrider::kernels::cuda {

constexpr int kSplit = 8;    // warps of a block: they share the summed dimension
constexpr int kBlockK = 64;  // numbers of it that a warp takes at a time, in two halves
constexpr int kTilePairs = 8;
constexpr int kProductThreads = kSplit * 32;

struct Inputs {
  const uint8_t* x = nullptr;  // bf16 [tokens, depth]
  int tokens = 0;
  int depth = 0;  // a multiple of 32
  Squares squares;
  Following following;
};

// Where a lane reads.
template <int kRowTiles>
struct Place {
  const uint8_t* base = nullptr;  // of all rows, at the lane's place in its first block
  uint32_t lines[kRowTiles];      // first row of the lane's pair, in 16 bytes from there
  unsigned valid = 0;             // bit t: the pair of tile t exists; bit 16 + n: so does the token of x below
  uint32_t second = 0;            // from the first row of a pair to the second, in 16 bytes
  int at = 0;                     // bytes from the start of a row to the lane's place in the first block
  const uint8_t* x = nullptr;     // of the lane's token among the first 8, at the same place
};

// Half a block: weights, and x for kTiles * 8 tokens.
template <int kTiles, int kRowTiles>
struct Half {
  uint4 weights[kRowTiles][2];
  uint4 x[kTiles];
};

template <int kTiles, int kRowTiles>
using Sums = float[kRowTiles][kTiles][4];

// Bytes from the lane's first place to that in half `i` of its warp.
__device__ __forceinline__ int HalfAt(int i) { return i / 2 * (kSplit * kBlockK * 2) + i % 2 * 64; }

template <int kTiles, int kRowTiles>
__device__ __forceinline__ void LoadRows(const Place<kRowTiles>& place, int byte, bool inside,
                                         Half<kTiles, kRowTiles>& half) {
  const uint8_t* at = place.base + byte;
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    const bool valid = inside && (place.valid >> t & 1) != 0;
    half.weights[t][0] = LoadWeights(at + uint64_t{place.lines[t]} * 16, valid);
    half.weights[t][1] = LoadWeights(at + uint64_t{place.lines[t] + place.second} * 16, valid);
  }
}

// Sends block `block` of the warp into the second cache: four lanes have the 128 bytes of a row. Where there is no
// pair, it is the first one's.
template <int kRowTiles>
__device__ __forceinline__ void PrefetchRows(const Place<kRowTiles>& place, int block, int end) {
  const int byte = HalfAt(2 * block) + Lane() % 4 * 16;
  if (byte >= end) return;
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    Prefetch(place.base + byte + uint64_t{place.lines[t]} * 16);
    Prefetch(place.base + byte + uint64_t{place.lines[t] + place.second} * 16);
  }
}

template <int kTiles, int kRowTiles>
__device__ __forceinline__ void LoadTokens(const Place<kRowTiles>& place, int depth, int byte, bool inside,
                                           Half<kTiles, kRowTiles>& half) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
    half.x[n] = LoadResult(place.x + byte + n * 16 * depth, inside && (place.valid >> (16 + n) & 1) != 0);
}

template <int kTiles, int kRowTiles>
__device__ __forceinline__ void Consume(const Half<kTiles, kRowTiles>& half, Sums<kTiles, kRowTiles>& sums) {
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    const uint4 a = half.weights[t][0], b = half.weights[t][1];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      Multiply(sums[t][n], a.x, b.x, a.y, b.y, half.x[n].x, half.x[n].y);
      Multiply(sums[t][n], a.z, b.z, a.w, b.w, half.x[n].z, half.x[n].w);
    }
  }
}

// Sums of the warp over its blocks of k, with kHalves halves under way at any time; before the wait, `ahead` more
// blocks are sent for. What `once` does after the wait shares its time.
template <int kTiles, int kRowTiles, int kHalves, class Once>
__device__ __forceinline__ void Walk(int depth, const Place<kRowTiles>& place, int ahead, Once once,
                                     Sums<kTiles, kRowTiles>& sums) {
  const int end = depth * 2 - place.at;
  Half<kTiles, kRowTiles> halves[kHalves];
#pragma unroll
  for (int h = 0; h < kHalves; ++h) LoadRows(place, HalfAt(h), HalfAt(h) < end, halves[h]);
#pragma unroll 1
  for (int i = 0; i < ahead; ++i) PrefetchRows(place, kHalves / 2 + i, end);
  WaitForPrevious();
#pragma unroll
  for (int h = 0; h < kHalves; ++h) LoadTokens(place, depth, HalfAt(h), HalfAt(h) < end, halves[h]);
  once();
#pragma unroll 1
  for (int first = 0; HalfAt(first) < end; first += kHalves) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      Consume(halves[h], sums);
      const int byte = HalfAt(first + h + kHalves);
      LoadRows(place, byte, byte < end, halves[h]);
      LoadTokens(place, depth, byte, byte < end, halves[h]);
    }
  }
}

// Sums of one warp for one 8 tokens into shared memory; 10: the next row lies in other banks.
template <int kTiles, int kRowTiles>
__device__ __forceinline__ void ShareSums(const Sums<kTiles, kRowTiles>& sums, int n, float (*to)[16][10]) {
  const int row = Lane() / 4, column = Lane() % 4 * 2;
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    *reinterpret_cast<float2*>(&to[t][row][column]) = {sums[t][n][0], sums[t][n][1]};
    *reinterpret_cast<float2*>(&to[t][row + 8][column]) = {sums[t][n][2], sums[t][n][3]};
  }
}

template <int kRowTiles, class Outputs>
__device__ __forceinline__ Place<kRowTiles> PlaceOf(const Outputs& outputs, const Inputs& in, int begin, int end) {
  Place<kRowTiles> place;
  place.second = static_cast<uint32_t>(outputs.second());
  place.at = Warp() * kBlockK * 2 + Lane() % 4 * 16;
  place.base = outputs.weight + place.at;
  place.x = in.x + Lane() / 4 * in.depth * 2 + place.at;
  for (int n = 0; n * 8 + Lane() / 4 < in.tokens; ++n) place.valid |= 1U << (16 + n);
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    const int unit = begin + t * kTilePairs + Lane() / 4;
    const bool valid = unit < end;
    place.lines[t] = outputs.Row(valid ? unit : 0);
    place.valid |= (valid ? 1U : 0U) << t;
  }
  return place;
}

// Of tokens n * 8 to n * 8 + 7 and the pairs [begin, end), from what the warps left. Eight lanes have a tile and token.
template <class Outputs, int kRowTiles>
__device__ __forceinline__ void StoreSums(const Outputs& outputs, const Inputs& in, int n, int begin, int end,
                                          const float (&rows)[kSplit][kRowTiles][16][10], const float* scales) {
  const int tiles = CeilDiv(end - begin, kTilePairs), tokens = min(8, in.tokens - n * 8);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < tiles * kTilePairs * tokens; i += kProductThreads) {
    const int pair = i % kTilePairs, tile = i / kTilePairs % tiles, token = i / kTilePairs / tiles;
    const int unit = begin + tile * kTilePairs + pair;
    float a = 0, b = 0;
#pragma unroll
    for (int w = 0; w < kSplit; ++w) {
      a += rows[w][tile][pair][token];
      b += rows[w][tile][pair + 8][token];
    }
    const float scale = in.squares.parts > 0 ? scales[n * 8 + token] : 1;
    const auto fetched = outputs.Fetch(unit, unit < end, n * 8 + token);
    outputs.Store(fetched, unit, unit < end, n * 8 + token, __fmul_rn(a, scale), __fmul_rn(b, scale));
  }
}

// Outputs: weight; int units() pairs in all; uint32_t Row(u) first row of pair u, in 16 bytes from `weight`; second()
// to the other one, likewise; Fetched Fetch(u, valid, token) what Store needs of memory; void Store(fetched, u, valid,
// token, first, second), called by 8 neighbouring lanes for the pairs of a tile; kWholeTiles: whether tiles must be the
// same ones, whatever the number of blocks.
template <class Outputs, int kTiles, int kRowTiles, int kHalves, int kBlocks, int kAhead>
__global__ void __launch_bounds__(kProductThreads, kBlocks) Product(Outputs outputs, Inputs in) {
  constexpr int kPairs = kRowTiles * kTilePairs;
  __shared__ float rows[kSplit][kRowTiles][16][10];
  __shared__ float scales[kTiles * 8];
  StartNext();
  constexpr int kUnit = Outputs::kWholeTiles ? kTilePairs : 1;
  const auto units = static_cast<unsigned>(outputs.units());
  const unsigned pieces = (units + kUnit - 1) / kUnit;
  const int first = static_cast<int>(pieces * blockIdx.x / gridDim.x) * kUnit;
  const int last = min(static_cast<int>(pieces * (blockIdx.x + 1) / gridDim.x) * kUnit, static_cast<int>(units));
  const int sweeps = max(1, CeilDiv(last - first, kPairs));
  const int each = CeilDiv(CeilDiv(last - first, sweeps), kUnit) * kUnit;
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    const int begin = first + sweep * each, end = min(last, begin + each);
    const Place<kRowTiles> place = PlaceOf<kRowTiles>(outputs, in, begin, end);
    Sums<kTiles, kRowTiles> sums = {};
    const auto once = [&] {
      if (sweep == 0) in.squares.FindScales<kTiles>(in.tokens, scales);
    };
    Walk<kTiles, kRowTiles, kHalves>(in.depth, place, sweep == 0 && begin < end ? kAhead : 0, once, sums);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      __syncthreads();
      ShareSums<kTiles, kRowTiles>(sums, n, rows[Warp()]);
      __syncthreads();
      StoreSums<Outputs, kRowTiles>(outputs, in, n, begin, end, rows, scales);
    }
  }
}

template <class Outputs, int kTiles, ProductForm kForm>
cudaError_t LaunchProduct(const Outputs& outputs, const Inputs& in, int multiprocessors, cudaStream_t stream,
                          bool chained) {
  const auto kernel = Product<Outputs, kTiles, kForm.row_tiles, kForm.halves, kForm.blocks, kForm.ahead>;
  const dim3 blocks(static_cast<unsigned>(kForm.blocks * multiprocessors));
  if (!chained) return Launch(kernel, blocks, kProductThreads, stream, outputs, in);
  return LaunchChained(kernel, blocks, kProductThreads, {}, stream, outputs, in);
}

}  // namespace outrider::kernels::cuda
