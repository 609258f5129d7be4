// Prefill: two grouped matrix products, each one launch over the tiles of all experts. Channels of weights are found
// through the experts' lists while they are copied.
//
//   GatherTokens  sorted [sorted token] = x
//   GateUp        hidden [sorted token, channel of its expert] = silu(x gate^T) * (x up^T), bf16
//   Down          y [token, output] = hidden down, sums over the expert's channels in stored order
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/pipeline.cuh"
#include "kernels/cuda/records.cuh"
#include "kernels/cuda/silu.cuh"
#include "kernels/cuda/stores.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tickets.cuh"

namespace outrider::kernels::cuda {
namespace {

constexpr int kChannels = 128;  // of one GateUp tile; its 256 columns are gate and up of one channel after another
constexpr int kOutputs = 256;   // of one Down tile
constexpr int kHalf = kTileTokens / 2;
static_assert(kTableExperts == kExpertsMax);

// hidden rows are padded with zeros to whole tiles of channels.
__host__ __device__ int HiddenWidth(const Layer& layer) {
  return CeilDiv(layer.active_max > 0 ? layer.active_max : 1, kChannels) * kChannels;
}

struct Maps {
  CUtensorMap tokens;      // rows of the first operand, 64 at once
  CUtensorMap records[4];  // as [channel][part][width]; 1, 2, 4 and 8 channels at once
};

// Shared memory of a block beside its ring.
struct Desk {
  uint64_t barriers[2 * kStages];
  Table table;
  TicketMemory tickets;
};

// What both kernels do first. by_channel: columns are the expert's channels, else outputs; width: of a tile.
__device__ __forceinline__ Ring Open(uint8_t* shared, Desk& desk, const Layer& layer, const Plan& plan, bool by_channel,
                                     int width) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) Tickets::Open(desk.tickets);
  const Ring ring = OpenRing(shared, desk.barriers);
  if (thread <= layer.experts) desk.table.rows_at[thread] = plan.order_at[thread];
  if (thread < layer.experts) {
    const int across = by_channel ? layer.list_at[thread + 1] - layer.list_at[thread] : layer.width;
    desk.table.columns[thread] = CeilDiv(across, width);
  }
  __syncthreads();
  ClusterSync();
  return ring;
}

// By one thread: how many bytes come in a stage, and the block's share of the rows of the first operand. A half without
// rows is left out.
__device__ __forceinline__ void CopyRows(const Tile& tile, const Ring& ring, const CUtensorMap& map, int rank, int k) {
  const int halves = tile.rows > kHalf ? 2 : 1;
  BarrierExpect(ring.Full(), kBBytes + halves * (kABytes / 2));
  for (int half = 0; half < halves; ++half) {
    const uint32_t to = ring.A() + half * (kABytes / 2);
    const int row = tile.first_row + half * kHalf;
    if (tile.together) {
      CopyBox(to, map, k, row, 0, ring.Full());
    } else if (half == rank) {
      CopyBoxToBoth(to, map, k, row, 0, ring.Full());
    }
  }
}

// Lanes 8 q to 8 q + 7 of a warp have the channels of group first + warp + 4 q of the tile.
__device__ void CopyGateUp(const Layer& layer, const Maps& maps, Walk walk, Ring ring, Tickets tickets, int* counter) {
  constexpr int kGroups = kChannels / 8;
  const int thread = static_cast<int>(threadIdx.x) % kCopyThreads, row = thread % 8;
  ring.parity = 1;  // an empty ring: the first wait on each stage passes
  for (int unit = static_cast<int>(blockIdx.x) / kCluster;; unit = tickets.Take()) {
    const Tile tile = walk.At(unit);
    if (tile.expert < 0) return;
    const int count = tile.together ? kGroups / kCluster : kGroups, first = tile.together ? walk.rank * count : 0;
    const int group = first + thread / 32 + thread % 32 / 8 * 4;
    const int at = layer.list_at[tile.expert] + tile.column + group * 8 + row;
    const int channel = ChannelAt(layer, at, layer.list_at[tile.expert + 1]), piece = PieceAt(channel);
    const bool mine = group < first + count && piece >= 0;
    for (int k = 0; k < layer.width; k += kDepth) {
      BarrierWait(ring.Empty(), ring.parity);
      if (thread == 0) CopyRows(tile, ring, maps.tokens, walk.rank, k);
      if (mine) {
        const uint32_t to = ring.B() + group * 2048 + row * 256;
        CopyPiece(tile.together, to, maps.records[piece], k, 0, channel, ring.Full());
      }
      __syncwarp();
      ring.Next();
    }
    if (thread == 0 && walk.rank == 0) tickets.Put(counter);
    __syncwarp();
  }
}

// B of a Down stage: blocks of [64 channels][64 outputs]. Lanes 8 q to 8 q + 7 have the channels of group
// first + warp + 4 (q % 2) and copy two blocks, from 2 (q / 2).
__device__ void CopyDown(const Layer& layer, const Maps& maps, Walk walk, Ring ring, Tickets tickets, int* counter) {
  constexpr int kGroups = kDepth / 8, kBlockBytes = kDepth * 128;
  const int thread = static_cast<int>(threadIdx.x) % kCopyThreads, lane = thread % 32, row = lane % 8;
  ring.parity = 1;
  for (int unit = static_cast<int>(blockIdx.x) / kCluster;; unit = tickets.Take()) {
    const Tile tile = walk.At(unit);
    if (tile.expert < 0) return;
    const int count = tile.together ? kGroups / kCluster : kGroups, first = tile.together ? walk.rank * count : 0;
    const int group = first + thread / 32 + lane / 8 % 2 * 4, block = lane / 16 * 2;
    const int list = layer.list_at[tile.expert], end = layer.list_at[tile.expert + 1], own = list + group * 8 + row;
    int next = ChannelAt(layer, own, end);
    for (int k = 0; k < end - list; k += kDepth) {
      const int channel = next, piece = PieceAt(channel);
      next = ChannelAt(layer, own + k + kDepth, end);
      BarrierWait(ring.Empty(), ring.parity);
      if (thread == 0) CopyRows(tile, ring, maps.tokens, walk.rank, k);
      if (group < first + count && piece >= 0) {
        const uint32_t to = ring.B() + block * kBlockBytes + group * 1024 + row * 128;
        const int x = tile.column + block * 64;
        CopyPiece(tile.together, to, maps.records[piece], x, 2, channel, ring.Full());
        CopyPiece(tile.together, to + kBlockBytes, maps.records[piece], x + 64, 2, channel, ring.Full());
      }
      __syncwarp();
      ring.Next();
    }
    if (thread == 0 && walk.rank == 0) tickets.Put(counter);
    __syncwarp();
  }
}

__device__ void StoreHidden(const Tile& tile, const float (&c)[128], int group, __nv_bfloat16* hidden, int width) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = RowOf(group, half);
    __nv_bfloat16* to = hidden + static_cast<int64_t>(tile.first_row + row) * width + tile.column;
#pragma unroll
    for (int j = 0; j < kChannels / 32; ++j) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = c + 8 * (4 * j + i) + 2 * half;
        v[i] = Packed(SiluTimes(pair[0], pair[1]), SiluTimes(pair[4], pair[5]));
      }
      StoreFours(v, to + 32 * j, row < tile.rows);
    }
  }
}

__device__ void StoreOutputs(const Tile& tile, const Plan& plan, const float (&c)[128], bool zero, int group,
                             __nv_bfloat16* y, int width) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = RowOf(group, half);
    const bool valid = row < tile.rows;
    __nv_bfloat16* to = y + static_cast<int64_t>(valid ? plan.order[tile.first_row + row] : 0) * width + tile.column;
#pragma unroll
    for (int j = 0; j < kOutputs / 32; ++j) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* number = c + 4 * (4 * j + i) + 2 * half;
        v[i] = zero ? 0 : Packed(number[0], number[1]);
      }
      StorePairs(v, to + 32 * j, valid && tile.column + 32 * j < width);
    }
  }
}

__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kBlockThreads, 1)
    GateUp(Layer layer, Plan plan, const __grid_constant__ Maps maps, __nv_bfloat16* hidden, int* counter) {
  extern __shared__ uint8_t shared[];
  __shared__ Desk desk;
  Ring ring = Open(shared, desk, layer, plan, true, kChannels);
  Tickets tickets{SharedAddress(&desk.tickets)};
  Walk walk{&desk.table, layer.experts, kChannels, static_cast<int>(ClusterRank())};
  if (const int group = WarpGroup(); group == 2) {
    CopyGateUp(layer, maps, walk, ring, tickets, counter);
  } else {
    for (int unit = Uniform(static_cast<int>(blockIdx.x) / kCluster);; unit = tickets.Take()) {
      const Tile tile = walk.At(unit);
      if (tile.expert < 0) break;
      if (tile.idle || tile.rows <= group * kHalf) {
        SkipStages(ring, layer.width / kDepth);
        continue;
      }
      float c[128];
      MultiplyStages<false>(ring, layer.width / kDepth, group, 16, 32, c);
      StoreHidden(tile, c, group, hidden, HiddenWidth(layer));
    }
  }
  __syncwarp();
  ClusterSync();  // the other block may still write into this one's memory
}

__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kBlockThreads, 1)
    Down(Layer layer, Plan plan, const __grid_constant__ Maps maps, __nv_bfloat16* y, int* counter) {
  extern __shared__ uint8_t shared[];
  __shared__ Desk desk;
  Ring ring = Open(shared, desk, layer, plan, false, kOutputs);
  Tickets tickets{SharedAddress(&desk.tickets)};
  Walk walk{&desk.table, layer.experts, kOutputs, static_cast<int>(ClusterRank())};
  if (const int group = WarpGroup(); group == 2) {
    CopyDown(layer, maps, walk, ring, tickets, counter);
  } else {
    for (int unit = Uniform(static_cast<int>(blockIdx.x) / kCluster);; unit = tickets.Take()) {
      const Tile tile = walk.At(unit);
      if (tile.expert < 0) break;
      const int steps = Uniform(CeilDiv(layer.list_at[tile.expert + 1] - layer.list_at[tile.expert], kDepth));
      if (tile.idle || tile.rows <= group * kHalf) {
        SkipStages(ring, steps);
        continue;
      }
      float c[128];
      MultiplyStages<true>(ring, steps, group, kDepth * 128, 16 * 128, c);
      StoreOutputs(tile, plan, c, steps == 0, group, y, layer.width);
    }
  }
  __syncwarp();
  ClusterSync();
}

constexpr int kGatherThreads = 256;

// Also sets the counters of the two launches behind it.
__global__ void __launch_bounds__(kGatherThreads)
    GatherTokens(Plan plan, const uint4* x, uint4* sorted, int pieces, int* counters) {
  if (blockIdx.x == 0 && threadIdx.x < 2) counters[threadIdx.x] = 0;
  const uint4* from = x + static_cast<int64_t>(plan.order[blockIdx.x]) * pieces;
  uint4* to = sorted + static_cast<int64_t>(blockIdx.x) * pieces;
  for (int i = static_cast<int>(threadIdx.x); i < pieces; i += kGatherThreads) to[i] = from[i];
}

bool Fits(const Layer& layer, int tokens) {
  return layer.width > 0 && layer.width % kDepth == 0 && layer.channels > 0 && layer.experts >= 1 &&
         layer.experts <= kExpertsMax && layer.active_max >= 0 && layer.active_max <= layer.channels && tokens >= 0;
}

// parts: of a record that one copy brings.
cudaError_t MapsOf(const Layer& layer, int parts, const void* rows, int64_t row_width, int tokens, Maps* maps) {
  const int64_t width = layer.width;
  const Matrices records{layer.records, width, 3, layer.channels, width, 3 * width};
  cudaError_t status = MakeMap({rows, row_width, tokens, 1, row_width}, kHalf, 1, &maps->tokens);
  for (int log = 0; log < 4 && status == cudaSuccess; ++log)
    status = MakeMap(records, parts, 1 << log, &maps->records[log]);
  return status;
}

// One block per multiprocessor, as far as clusters fit.
template <class... Parameters, class... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), int multiprocessors, cudaStream_t stream, Arguments... arguments) {
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::max(multiprocessors / kCluster, 1) * kCluster);
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kCluster, 1, 1};
  int clusters = 0;
  status = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  if (status != cudaSuccess) return status;
  config.gridDim.x = std::clamp(clusters * kCluster, kCluster, static_cast<int>(config.gridDim.x));
  config.numAttrs = 0;  // the kernel itself says its cluster
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

int64_t HiddenNumbers(const Layer& layer, int tokens) { return static_cast<int64_t>(tokens) * HiddenWidth(layer); }
int64_t SortedNumbers(const Layer& layer, int tokens) { return static_cast<int64_t>(tokens) * layer.width; }

}  // namespace

int64_t PrefillBytes(const Layer& layer, int tokens) {
  return (HiddenNumbers(layer, tokens) + SortedNumbers(layer, tokens)) * 2 + 2 * static_cast<int64_t>(sizeof(int));
}

cudaError_t Prefill(const Layer& layer, const Plan& plan, const void* x, void* y, int tokens, void* scratch,
                    int multiprocessors, cudaStream_t stream) {
  if (!Fits(layer, tokens)) return cudaErrorInvalidValue;
  if (tokens == 0) return cudaSuccess;
  auto* hidden = static_cast<__nv_bfloat16*>(scratch);
  __nv_bfloat16* sorted = hidden + HiddenNumbers(layer, tokens);
  int* counters = reinterpret_cast<int*>(sorted + SortedNumbers(layer, tokens));
  Maps gate_up, down;
  cudaError_t status = MapsOf(layer, 2, sorted, layer.width, tokens, &gate_up);
  if (status == cudaSuccess) status = MapsOf(layer, 1, hidden, HiddenWidth(layer), tokens, &down);
  if (status != cudaSuccess) return status;
  GatherTokens<<<tokens, kGatherThreads, 0, stream>>>(plan, static_cast<const uint4*>(x),
                                                      reinterpret_cast<uint4*>(sorted), layer.width / 8, counters);
  status = cudaGetLastError();
  if (status == cudaSuccess) status = Launch(GateUp, multiprocessors, stream, layer, plan, gate_up, hidden, counters);
  if (status != cudaSuccess) return status;
  return Launch(Down, multiprocessors, stream, layer, plan, down, static_cast<__nv_bfloat16*>(y), counters + 1);
}

}  // namespace outrider::kernels::cuda
