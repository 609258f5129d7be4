#pragma once
// What both prefill kernels share: a block of two warpgroups that multiply and one that copies, a ring of stages in
// shared memory between them, and the walk over tiles.
//
// A tile is 128 tokens of one expert by 256 columns (or fewer). A stage holds 64 numbers of the summed dimension:
//   a  [128 tokens][64]   rows of 128 bytes
//   b  256 * 64 numbers, laid out by the kernel
// Pieces of 16 bytes are permuted by xor inside each 128-byte row; see Operand in ptx.cuh.

#include "kernels/cuda/multiply.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tied_ffn.h"

namespace outrider::kernels::cuda {

constexpr int kTileTokens = 128;
constexpr int kDepth = 64;
constexpr int kStages = 4;
constexpr int kCopyThreads = 128;
constexpr int kMultiplyWarps = 8;
constexpr int kBlockThreads = kMultiplyWarps * 32 + kCopyThreads;
constexpr int kABytes = kTileTokens * 128;
constexpr int kBBytes = 256 * 128;
constexpr int kStageBytes = kABytes + kBBytes;
constexpr int kSharedBytes = 1024 + kStages * kStageBytes;  // the ring starts at a multiple of 1024

__host__ __device__ constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// The same in all lanes of a warp, and known to be so: the matrix instructions may not stand in divergent code.
__device__ __forceinline__ int Uniform(int value) { return __shfl_sync(~0U, value, 0); }

__device__ __forceinline__ int WarpGroup() { return Uniform(static_cast<int>(threadIdx.x) / 128); }

// One tile: `rows` tokens from plan.order[first_row], columns from `column`, of an expert.
struct Tile {
  int expert = -1;  // -1: there is no such tile
  int first_row = 0;
  int rows = 0;
  int column = 0;
};

// Tiles in the order expert, column, tokens: blocks that run at the same time share weights. by_channel: columns are
// the expert's channels, else outputs.
template <bool kByChannel>
__device__ Tile TileAt(const Layer& layer, const Plan& plan, int index, int columns) {
  for (int e = 0; e < layer.experts; ++e) {
    const int first = Uniform(plan.order_at[e]), tokens = Uniform(plan.order_at[e + 1]) - first;
    const int across = kByChannel ? Uniform(layer.list_at[e + 1] - layer.list_at[e]) : layer.width;
    const int down = CeilDiv(tokens, kTileTokens), tiles = down * CeilDiv(across, columns);
    if (index < tiles) {
      const int row = index % down * kTileTokens;
      return {e, first + row, min(kTileTokens, tokens - row), index / down * columns};
    }
    index -= tiles;
  }
  return {};
}

// Where a thread stands in the ring. Both sides count the same stages.
struct Ring {
  uint32_t memory = 0;  // shared address of stage 0
  uint32_t full = 0, empty = 0;
  int stage = 0;
  uint32_t parity = 0;

  __device__ uint32_t A() const { return memory + stage * kStageBytes; }
  __device__ uint32_t B() const { return A() + kABytes; }
  __device__ uint32_t Full() const { return full + stage * 8; }
  __device__ uint32_t Empty() const { return empty + stage * 8; }
  __device__ void Next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Every multiplying warp says that it is done with a stage, so none can fall behind by a turn of the ring.
__device__ __forceinline__ void Release(uint32_t empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(empty);
}

// Called once by all threads of the block.
__device__ __forceinline__ Ring OpenRing(uint8_t* shared, uint64_t* barriers) {
  Ring ring;
  ring.memory = (SharedAddress(shared) + 1023U) & ~1023U;
  ring.full = SharedAddress(barriers);
  ring.empty = ring.full + kStages * 8;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(ring.full + i * 8, kCopyThreads);
      BarrierInit(ring.empty + i * 8, kMultiplyWarps);
    }
  }
  __syncthreads();
  return ring;
}

// Address of 16-byte piece `piece` of row `row` in rows of 128 bytes.
__device__ __forceinline__ uint32_t Permuted(uint32_t base, int row, int piece) {
  return base + row * 128 + ((piece ^ (row & 7)) << 4);
}

// Sums over `steps` stages into c, for warpgroup `group` (0 or 1).
// B operand of step i of a stage: `b_group`, `b_block` as in Operand, `b_step` bytes from one 16 to the next.
template <bool kTransposed, int kRegisters>
__device__ __forceinline__ void MultiplyStages(Ring& ring, int steps, int group, uint32_t b_group, uint32_t b_block,
                                               uint32_t b_step, float (&c)[kRegisters]) {
  uint32_t previous = 0;
  for (int step = 0; step < steps; ++step) {
    BarrierWait(ring.Full(), ring.parity);
    FenceForMatrixUnits();
    MatrixFence();
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i) {
      const uint64_t a = Operand(ring.A() + group * 64 * 128 + i * 32, 1024, 16);
      const uint64_t b = Operand(ring.B() + i * b_step, b_group, b_block);
      Multiply<kTransposed>(c, a, b, step != 0 || i != 0);
    }
    MatrixCommit();
    MatrixWait<1>();  // the stage before this one has been read
    if (step > 0) Release(previous);
    previous = ring.Empty();
    ring.Next();
  }
  MatrixWait<0>();
  if (steps > 0) Release(previous);
}

// What a warpgroup does whose rows are all past the end of the tile.
__device__ __forceinline__ void SkipStages(Ring& ring, int steps) {
  for (int step = 0; step < steps; ++step) {
    BarrierWait(ring.Full(), ring.parity);
    Release(ring.Empty());
    ring.Next();
  }
}

}  // namespace outrider::kernels::cuda
