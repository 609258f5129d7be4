// Prefill: two grouped matrix products, each one launch over the tiles of all experts. Rows of x, of weights and of y
// are found through index lists while they are copied; nothing is gathered in device memory.
//
//   GateUp   hidden [sorted token, channel of its expert] = silu(x gate^T) * (x up^T), bf16
//   Down     y [token, output] = hidden down, sums over the expert's channels in stored order
#include <cuda_bf16.h>

#include "kernels/cuda/pipeline.cuh"

namespace outrider::kernels::cuda {
namespace {

constexpr int kChannels = 128;  // of one GateUp tile; its 256 columns are their gates, then their ups

// hidden rows are padded with zeros to whole tiles of channels.
__host__ __device__ int HiddenWidth(const Layer& layer) { return CeilDiv(layer.active_max, kChannels) * kChannels; }

// Copies 64 numbers of each row of a tile into the A half of a stage. A copying thread owns piece thread % 8 of rows
// thread / 8 + 16 i.
struct RowCopies {
  const uint8_t* base = nullptr;
  uint32_t lines[8] = {};  // row starts in units of 16 bytes
  uint32_t valid = 0;      // bit i

  __device__ void Start(uint32_t to, int at_byte) const {
    const int thread = static_cast<int>(threadIdx.x) % kCopyThreads, piece = thread % 8;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint8_t* source = base + static_cast<uint64_t>(lines[i]) * 16 + at_byte + piece * 16;
      CopyAsync(Permuted(to, thread / 8 + 16 * i, piece), source, (valid >> i & 1U) != 0);
    }
  }
};

// Rows plan.order[tile.first_row ...] of x.
__device__ RowCopies TokenRows(const Tile& tile, const Plan& plan, const void* x, int width) {
  RowCopies copies;
  copies.base = static_cast<const uint8_t*>(x);
  for (int i = 0; i < 8; ++i) {
    const int row = static_cast<int>(threadIdx.x) % kCopyThreads / 8 + 16 * i;
    if (row >= tile.rows) continue;
    copies.lines[i] = static_cast<uint32_t>(plan.order[tile.first_row + row]) * static_cast<uint32_t>(width / 8);
    copies.valid |= 1U << i;
  }
  return copies;
}

// Gate rows of the tile's channels; up rows follow them by `width` numbers.
__device__ RowCopies ChannelRows(const Tile& tile, const Layer& layer) {
  RowCopies copies;
  copies.base = static_cast<const uint8_t*>(layer.records);
  const int end = layer.list_at[tile.expert + 1];
  for (int i = 0; i < 8; ++i) {
    const int at = layer.list_at[tile.expert] + tile.column + static_cast<int>(threadIdx.x) % kCopyThreads / 8 + 16 * i;
    if (at >= end) continue;
    copies.lines[i] = static_cast<uint32_t>(layer.lists[at]) * static_cast<uint32_t>(3 * layer.width / 8);
    copies.valid |= 1U << i;
  }
  return copies;
}

__device__ void CopyGateUp(const Layer& layer, const Plan& plan, const void* x, Ring ring) {
  ring.parity = 1;  // an empty ring: the first wait on each stage passes
  for (int index = static_cast<int>(blockIdx.x);; index += static_cast<int>(gridDim.x)) {
    const Tile tile = TileAt<true>(layer, plan, index, kChannels);
    if (tile.expert < 0) return;
    const RowCopies tokens = TokenRows(tile, plan, x, layer.width), gates = ChannelRows(tile, layer);
    for (int byte = 0; byte < 2 * layer.width; byte += 2 * kDepth) {
      BarrierWait(ring.Empty(), ring.parity);
      tokens.Start(ring.A(), byte);
      gates.Start(ring.B(), byte);
      gates.Start(ring.B() + kChannels * 128, byte + 2 * layer.width);
      BarrierArriveBehindCopies(ring.Full());
      ring.Next();
    }
  }
}

__device__ __forceinline__ float SiluTimes(float g, float u) { return __fdividef(g, 1.0F + __expf(-g)) * u; }

// c holds gates in columns 0 to 127 and ups in 128 to 255.
__device__ void StoreHidden(const Tile& tile, const float (&c)[128], int group, __nv_bfloat16* hidden, int width) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
  for (int half = 0; half < 2; ++half) {
    const int row = group * 64 + thread / 32 * 16 + half * 8 + lane / 4;
    if (row >= tile.rows) continue;
    __nv_bfloat16* to = hidden + static_cast<int64_t>(tile.first_row + row) * width + tile.column + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float h0 = SiluTimes(c[4 * j + 2 * half], c[4 * (j + 16) + 2 * half]);
      const float h1 = SiluTimes(c[4 * j + 2 * half + 1], c[4 * (j + 16) + 2 * half + 1]);
      *reinterpret_cast<__nv_bfloat162*>(to + 8 * j) = __floats2bfloat162_rn(h0, h1);
    }
  }
}

__global__ void __launch_bounds__(kBlockThreads, 1)
    GateUp(Layer layer, Plan plan, const void* x, __nv_bfloat16* hidden) {
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t barriers[2 * kStages];
  Ring ring = OpenRing(shared, barriers);
  const int group = WarpGroup();
  if (group == 2) {
    CopyGateUp(layer, plan, x, ring);
    return;
  }
  for (int index = static_cast<int>(blockIdx.x);; index += static_cast<int>(gridDim.x)) {
    const Tile tile = TileAt<true>(layer, plan, index, kChannels);
    if (tile.expert < 0) return;
    if (tile.rows <= group * 64) {
      SkipStages(ring, layer.width / kDepth);
      continue;
    }
    float c[128];
    MultiplyStages<false>(ring, layer.width / kDepth, group, 1024, 16, 32, c);
    StoreHidden(tile, c, group, hidden, HiddenWidth(layer));
  }
}

// B of a Down stage: kColumns / 64 blocks of [64 channels][64 outputs]. A warp copies 16 channels, `kColumns` outputs
// each.
template <int kColumns>
__device__ void CopyDown(const Layer& layer, const Plan& plan, const __nv_bfloat16* hidden, Ring ring) {
  constexpr int kPieces = kColumns / 8;
  const int thread = static_cast<int>(threadIdx.x) % kCopyThreads, lane = thread % 32, warp = thread / 32;
  ring.parity = 1;
  for (int index = static_cast<int>(blockIdx.x);; index += static_cast<int>(gridDim.x)) {
    const Tile tile = TileAt<false>(layer, plan, index, kColumns);
    if (tile.expert < 0) return;
    const int first = layer.list_at[tile.expert], active = layer.list_at[tile.expert + 1] - first;
    const int pieces = min(kPieces, (layer.width - tile.column) / 8);
    RowCopies rows;
    rows.base = reinterpret_cast<const uint8_t*>(hidden);
    for (int i = 0; i < 8; ++i) {
      const int row = thread / 8 + 16 * i;
      if (row >= tile.rows) continue;
      rows.lines[i] = static_cast<uint32_t>(tile.first_row + row) * static_cast<uint32_t>(HiddenWidth(layer) / 8);
      rows.valid |= 1U << i;
    }
    for (int k = 0; k < active; k += kDepth) {
      // Lanes 0 to 15 hold the channels of this warp's rows; -1 past the end.
      const int own = k + warp * 16 + lane;
      const int channel = lane < 16 && own < active ? layer.lists[first + own] : -1;
      BarrierWait(ring.Empty(), ring.parity);
      rows.Start(ring.A(), 2 * k);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int c = __shfl_sync(~0U, channel, i), row = warp * 16 + i;
        if (kPieces < 32 && lane >= kPieces) continue;
        const bool valid = c >= 0 && lane < pieces;
        const uint64_t number = (static_cast<uint64_t>(max(c, 0)) * 3 + 2) * layer.width + tile.column;
        const uint8_t* source = static_cast<const uint8_t*>(layer.records) + number * 2 + (valid ? lane * 16 : 0);
        CopyAsync(Permuted(ring.B() + lane / 8 * (kDepth * 128), row, lane % 8), source, valid);
      }
      BarrierArriveBehindCopies(ring.Full());
      ring.Next();
    }
  }
}

template <int kColumns>
__device__ void StoreOutputs(const Tile& tile, const Plan& plan, const float (&c)[kColumns / 2], bool zero, int group,
                             __nv_bfloat16* y, int width) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
  for (int half = 0; half < 2; ++half) {
    const int row = group * 64 + thread / 32 * 16 + half * 8 + lane / 4;
    if (row >= tile.rows) continue;
    const int column = tile.column + lane % 4 * 2;
    __nv_bfloat16* to = y + static_cast<int64_t>(plan.order[tile.first_row + row]) * width + column;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      if (column + 8 * j >= width) break;
      const float y0 = zero ? 0 : c[4 * j + 2 * half], y1 = zero ? 0 : c[4 * j + 2 * half + 1];
      *reinterpret_cast<__nv_bfloat162*>(to + 8 * j) = __floats2bfloat162_rn(y0, y1);
    }
  }
}

template <int kColumns>
__global__ void __launch_bounds__(kBlockThreads, 1)
    Down(Layer layer, Plan plan, const __nv_bfloat16* hidden, __nv_bfloat16* y) {
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t barriers[2 * kStages];
  Ring ring = OpenRing(shared, barriers);
  const int group = WarpGroup();
  if (group == 2) {
    CopyDown<kColumns>(layer, plan, hidden, ring);
    return;
  }
  for (int index = static_cast<int>(blockIdx.x);; index += static_cast<int>(gridDim.x)) {
    const Tile tile = TileAt<false>(layer, plan, index, kColumns);
    if (tile.expert < 0) return;
    const int steps = Uniform(CeilDiv(layer.list_at[tile.expert + 1] - layer.list_at[tile.expert], kDepth));
    if (tile.rows <= group * 64) {
      SkipStages(ring, steps);
      continue;
    }
    float c[kColumns / 2];
    MultiplyStages<true>(ring, steps, group, 1024, kDepth * 128, 16 * 128, c);
    StoreOutputs<kColumns>(tile, plan, c, steps == 0, group, y, layer.width);
  }
}

bool Fits(const Layer& layer, int tokens) {
  return layer.width > 0 && layer.width % kDepth == 0 && layer.channels > 0 && layer.experts >= 1 &&
         layer.experts <= kExpertsMax && layer.active_max >= 0 && layer.active_max <= layer.channels && tokens >= 0;
}

template <class Kernel>
cudaError_t AllowShared(Kernel kernel) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kSharedBytes);
}

template <int kColumns>
cudaError_t LaunchDown(const Layer& layer, const Plan& plan, const __nv_bfloat16* hidden, __nv_bfloat16* y, int blocks,
                       cudaStream_t stream) {
  if (const cudaError_t status = AllowShared(Down<kColumns>); status != cudaSuccess) return status;
  Down<kColumns><<<blocks, kBlockThreads, kSharedBytes, stream>>>(layer, plan, hidden, y);
  return cudaGetLastError();
}

// Waves of whole tiles times their size: what a launch of tiles this wide costs, in columns.
int64_t Cost(const Layer& layer, int tokens, int multiprocessors, int columns) {
  const int tiles = CeilDiv(tokens, kTileTokens) * CeilDiv(layer.width, columns);
  return static_cast<int64_t>(CeilDiv(tiles, multiprocessors)) * columns;
}

}  // namespace

int64_t HiddenBytes(const Layer& layer, int tokens) { return static_cast<int64_t>(tokens) * HiddenWidth(layer) * 2; }

cudaError_t Prefill(const Layer& layer, const Plan& plan, const void* x, void* y, int tokens, void* hidden,
                    int multiprocessors, int outputs, cudaStream_t stream) {
  if (!Fits(layer, tokens) || (outputs != 0 && outputs != 192 && outputs != 256)) return cudaErrorInvalidValue;
  if (tokens == 0) return cudaSuccess;
  auto* h = static_cast<__nv_bfloat16*>(hidden);
  if (const cudaError_t status = AllowShared(GateUp); status != cudaSuccess) return status;
  GateUp<<<multiprocessors, kBlockThreads, kSharedBytes, stream>>>(layer, plan, x, h);
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
  const bool narrow = Cost(layer, tokens, multiprocessors, 192) < Cost(layer, tokens, multiprocessors, 256);
  if (outputs == 192 || (outputs == 0 && narrow))
    return LaunchDown<192>(layer, plan, h, static_cast<__nv_bfloat16*>(y), multiprocessors, stream);
  return LaunchDown<256>(layer, plan, h, static_cast<__nv_bfloat16*>(y), multiprocessors, stream);
}

}  // namespace outrider::kernels::cuda
