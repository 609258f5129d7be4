// Two launches:
//
//   Store  rotary angles; keys and values into their pages
//   Mix    a block per tile and head: softmax sums over blocks of 64 keys; a warp has 16 rows of the tile
//
// While a block of keys and values is multiplied, the next one is copied. All products use m16n8k16.
#include <cuda_bf16.h>

#include "kernels/cuda/chunk_attention.h"
#include "kernels/cuda/ptx.cuh"

namespace outrider::kernels::cuda {
namespace {

using Bf16 = __nv_bfloat16;
constexpr int kPage = 16;           // tokens
constexpr float kNothing = -1e30F;  // maximum of no score; its difference to itself is a number
constexpr int kStoreHeads = 8;      // of a block of Store
constexpr int kThreads = 128;
constexpr int kWarpRows = 16;
constexpr int kKeys = 64;  // of a block
constexpr int kKeyTiles = kKeys / 8;
constexpr int kPad = 8;  // numbers behind each row in shared memory: no two rows of 8 share a bank
constexpr float kLog2E = 1.4426950408889634F;
static_assert(kThreads / 32 * kWarpRows == kAttentionTileRows);

template <int kDim>
constexpr int kBlockNumbers = kKeys * (kDim + kPad);  // of keys or of values
template <int kDim>
constexpr int kSharedBytesOf = 2 * 2 * kBlockNumbers<kDim> * static_cast<int>(sizeof(Bf16));

// One block per row and kStoreHeads heads of queries, keys or values; a thread turns one plane.
__global__ void Store(ChunkAttention call) {
  const int row = static_cast<int>(blockIdx.x), pair = static_cast<int>(threadIdx.x);
  const int head = static_cast<int>(blockIdx.y * kStoreHeads + threadIdx.y);
  const int half = call.head_dim / 2, all = call.heads + 2 * call.kv_heads;
  if (head >= all) return;
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
    const int64_t page = call.pages[static_cast<int64_t>(call.texts[row]) * call.table + position / kPage];
    to = static_cast<Bf16*>(is_key ? call.keys : call.values) +
         ((page * call.kv_heads + kv) * kPage + position % kPage) * call.head_dim;
  }
  to[pair] = __float2bfloat16(a);
  to[pair + half] = __float2bfloat16(b);
}

__device__ __forceinline__ void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices whose rows start at the lanes' addresses, eight lanes to a matrix.
__device__ __forceinline__ void LoadMatrices(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadTransposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ uint32_t Pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// What a block works on. Positions are those of the tile's rows, which follow one another.
struct Work {
  int first_row, rows, head, kv;
  int first, last;  // positions of the first and last row
  const int32_t* pages;
};

__device__ __forceinline__ Work WorkOf(const ChunkAttention& call) {
  const int32_t* tile = call.tiles + static_cast<int64_t>(blockIdx.y) * 4;
  Work work;
  work.first_row = tile[0];
  work.rows = tile[1];
  work.head = static_cast<int>(blockIdx.x);
  work.kv = work.head / (call.heads / call.kv_heads);
  work.first = call.positions[work.first_row];
  work.last = work.first + work.rows - 1;
  work.pages = call.pages + static_cast<int64_t>(tile[2]) * call.table;
  return work;
}

// Starts the copy of keys and values [block * kKeys, ...) into `keys` and the memory behind them; zeros behind the last
// row's own.
template <int kDim>
__device__ __forceinline__ void CopyBlock(const ChunkAttention& call, const Work& work, int block, uint32_t keys) {
  constexpr int kPieces = kDim / 8;  // of 16 bytes in a row
  constexpr uint32_t kValues = kBlockNumbers<kDim> * sizeof(Bf16);
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * kPieces; i += kThreads) {
    const int key = i / kPieces, piece = i % kPieces, position = block * kKeys + key;
    const bool seen = position <= work.last;
    const int64_t page = work.pages[(seen ? position : work.last) / kPage];
    const int64_t at = ((page * call.kv_heads + work.kv) * kPage + position % kPage) * kDim + piece * 8;
    const uint32_t to = keys + static_cast<uint32_t>(key * (kDim + kPad) + piece * 8) * sizeof(Bf16);
    CopyAsync(to, static_cast<const Bf16*>(call.keys) + at, seen);
    CopyAsync(to + kValues, static_cast<const Bf16*>(call.values) + at, seen);
  }
  CommitCopies();
}

// Rows of the queries as the first operand; rows behind the tile's own repeat its last one.
template <int kDim>
__device__ __forceinline__ void LoadQueries(const ChunkAttention& call, const Work& work,
                                            uint32_t (&to)[kDim / 16][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int all = call.heads + 2 * call.kv_heads;
  for (int half = 0; half < 2; ++half) {
    const int row = work.first_row + min(warp * kWarpRows + half * 8 + lane / 4, work.rows - 1);
    const Bf16* from = static_cast<const Bf16*>(call.qkv) + (static_cast<int64_t>(row) * all + work.head) * kDim;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      to[k][half] = *reinterpret_cast<const uint32_t*>(from + k * 16 + lane % 4 * 2);
      to[k][half + 2] = *reinterpret_cast<const uint32_t*>(from + k * 16 + 8 + lane % 4 * 2);
    }
  }
}

// Products of 16 queries with the block's keys: of row lane / 4 + 8 (i / 2), key 8 tile + lane % 4 * 2 + i % 2.
template <int kDim>
__device__ __forceinline__ void Scores(const uint32_t (&queries)[kDim / 16][4], uint32_t keys,
                                       float (&scores)[kKeyTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t row = keys + static_cast<uint32_t>(lane % 8 * (kDim + kPad) + lane / 8 * 8) * sizeof(Bf16);
#pragma unroll
  for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[tile][i] = 0;
#pragma unroll
    for (int k = 0; k < kDim / 32; ++k) {
      uint32_t b[4];
      LoadMatrices(b, row + static_cast<uint32_t>(tile * 8 * (kDim + kPad) + k * 32) * sizeof(Bf16));
      Multiply(scores[tile], queries[2 * k], b[0], b[1]);
      Multiply(scores[tile], queries[2 * k + 1], b[2], b[3]);
    }
  }
}

// Softmax of two rows so far, rows lane / 4 and lane / 4 + 8 of the warp: a lane has its own part of the sums.
template <int kDim>
struct Sums {
  float most[2] = {kNothing, kNothing}, total[2] = {};
  float mixed[kDim / 8][4] = {};
};

// Turns scores into weights, and rescales what was summed before.
template <int kDim>
__device__ __forceinline__ void Weigh(const ChunkAttention& call, const Work& work, int block,
                                      float (&scores)[kKeyTiles][4], Sums<kDim>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const float scale = call.scale * kLog2E;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int position = work.first + warp * kWarpRows + half * 8 + lane / 4;
    const int seen = call.window > 0 ? position - call.window : -1;  // keys behind it are seen
    const auto hidden = [&](int tile, int i) {
      const int key = block * kKeys + tile * 8 + lane % 4 * 2 + i;
      return key > position || key <= seen;
    };
    float top = sums.most[half];
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (!hidden(tile, i)) top = fmaxf(top, scores[tile][2 * half + i]);
    top = fmaxf(top, __shfl_xor_sync(~0U, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0U, top, 2));
    const float before = exp2f((sums.most[half] - top) * scale);
    sums.most[half] = top;
    sums.total[half] *= before;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      sums.mixed[d][2 * half] *= before;
      sums.mixed[d][2 * half + 1] *= before;
    }
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& weight = scores[tile][2 * half + i];
        weight = hidden(tile, i) ? 0 : exp2f((weight - top) * scale);
        sums.total[half] += weight;
      }
  }
}

template <int kDim>
__device__ __forceinline__ void AddValues(const float (&weights)[kKeyTiles][4], uint32_t values, Sums<kDim>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int key = lane / 8 % 2 * 8 + lane % 8, dim = lane / 16 * 8;
  const uint32_t row = values + static_cast<uint32_t>(key * (kDim + kPad) + dim) * sizeof(Bf16);
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    const uint32_t a[4] = {Pair(weights[2 * k][0], weights[2 * k][1]), Pair(weights[2 * k][2], weights[2 * k][3]),
                           Pair(weights[2 * k + 1][0], weights[2 * k + 1][1]),
                           Pair(weights[2 * k + 1][2], weights[2 * k + 1][3])};
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t b[4];
      LoadTransposed(b, row + static_cast<uint32_t>(k * 16 * (kDim + kPad) + d * 16) * sizeof(Bf16));
      Multiply(sums.mixed[2 * d], a, b[0], b[1]);
      Multiply(sums.mixed[2 * d + 1], a, b[2], b[3]);
    }
  }
}

template <int kDim>
__device__ __forceinline__ void StoreMixed(const ChunkAttention& call, const Work& work, Sums<kDim>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sums.total[half];
    total += __shfl_xor_sync(~0U, total, 1);
    total += __shfl_xor_sync(~0U, total, 2);
    const int row = warp * kWarpRows + half * 8 + lane / 4;
    if (row >= work.rows) continue;
    Bf16* to = static_cast<Bf16*>(call.out) +
               (static_cast<int64_t>(work.first_row + row) * call.heads + work.head) * kDim + lane % 4 * 2;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d)
      *reinterpret_cast<uint32_t*>(to + d * 8) =
          Pair(sums.mixed[d][2 * half] / total, sums.mixed[d][2 * half + 1] / total);
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads) Mix(ChunkAttention call) {
  extern __shared__ uint4 shared[];
  const uint32_t memory = SharedAddress(shared);
  constexpr uint32_t kBlockBytes = kBlockNumbers<kDim> * sizeof(Bf16), kStageBytes = 2 * kBlockBytes;
  const Work work = WorkOf(call);
  const int first_key = call.window > 0 ? max(0, work.first - call.window + 1) : 0;
  uint32_t queries[kDim / 16][4];
  LoadQueries<kDim>(call, work, queries);
  Sums<kDim> sums;
  int block = first_key / kKeys;
  const int last_block = work.last / kKeys;
  CopyBlock<kDim>(call, work, block, memory);
  for (uint32_t stage = 0; block <= last_block; ++block, stage ^= 1) {
    const uint32_t here = memory + stage * kStageBytes;
    if (block < last_block) {
      CopyBlock<kDim>(call, work, block + 1, memory + (stage ^ 1) * kStageBytes);
      WaitForCopies<1>();
    } else {
      WaitForCopies<0>();
    }
    __syncthreads();
    float scores[kKeyTiles][4];
    Scores<kDim>(queries, here, scores);
    Weigh<kDim>(call, work, block, scores, sums);
    AddValues<kDim>(scores, here + kBlockBytes, sums);
    __syncthreads();  // all have read this stage before it is filled anew
  }
  StoreMixed<kDim>(call, work, sums);
}

template <int kDim>
cudaError_t Launch(const ChunkAttention& call, cudaStream_t stream) {
  constexpr int kBytes = kSharedBytesOf<kDim>;
  const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(Mix<kDim>),
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (status != cudaSuccess) return status;
  const auto heads = static_cast<unsigned>(call.heads), all = heads + 2 * static_cast<unsigned>(call.kv_heads);
  const dim3 stores(static_cast<unsigned>(call.rows), (all + kStoreHeads - 1) / kStoreHeads);
  Store<<<stores, dim3(kDim / 2, kStoreHeads), 0, stream>>>(call);
  Mix<kDim><<<dim3(heads, static_cast<unsigned>(call.tile_count)), kThreads, kBytes, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace

cudaError_t AttendChunk(const ChunkAttention& call, cudaStream_t stream) {
  const bool fits =
      call.rows > 0 && call.tile_count > 0 && call.kv_heads > 0 && call.heads > 0 && call.heads % call.kv_heads == 0;
  if (!fits) return cudaErrorInvalidValue;
  switch (call.head_dim) {
    case 32:
      return Launch<32>(call, stream);
    case 64:
      return Launch<64>(call, stream);
    case 128:
      return Launch<128>(call, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace outrider::kernels::cuda
