#pragma once
// What both prefill kernels share: a block of two warpgroups that multiply and one that copies, and a ring of stages in
// shared memory between them. Both blocks of a cluster fill each other's rings, so both must be done with a stage.
//
// A stage holds 64 numbers of the summed dimension:
//   a  [128 tokens][64]   rows of 128 bytes
//   b  256 * 64 numbers, laid out by the kernel
// Pieces of 16 bytes are permuted by xor inside each 128-byte row; see Operand in ptx.cuh.

#include "kernels/cuda/multiply.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_copy.cuh"
#include "kernels/cuda/tiles.h"

namespace outrider::kernels::cuda {

constexpr int kDepth = 64;
constexpr int kStages = 4;
constexpr int kCopyThreads = 128;
constexpr int kMultiplyWarps = 8;
constexpr int kBlockThreads = kMultiplyWarps * 32 + kCopyThreads;
constexpr int kABytes = kTileTokens * 128;
constexpr int kBBytes = 256 * 128;
constexpr int kStageBytes = kABytes + kBBytes;
constexpr int kSharedBytes = 1024 + kStages * kStageBytes;  // the ring starts at a multiple of 1024

// The same in all lanes of a warp, and known to be so: the matrix instructions may not stand in divergent code.
__device__ __forceinline__ int Uniform(int value) { return __shfl_sync(~0U, value, 0); }

__device__ __forceinline__ int WarpGroup() { return Uniform(static_cast<int>(threadIdx.x) / 128); }

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

// Every multiplying warp tells both blocks that it is done with a stage, so none can fall behind by a turn of the ring.
__device__ __forceinline__ void Release(uint32_t empty) {
  __syncwarp();
  if (threadIdx.x % 32 < kCluster) BarrierArriveAt(empty, threadIdx.x % 32);
}

// Called once by all threads of the block; the cluster has to meet before the first copy.
__device__ __forceinline__ Ring OpenRing(uint8_t* shared, uint64_t* barriers) {
  Ring ring;
  ring.memory = (SharedAddress(shared) + 1023U) & ~1023U;
  ring.full = SharedAddress(barriers);
  ring.empty = ring.full + kStages * 8;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(ring.full + i * 8, 1);
      BarrierInit(ring.empty + i * 8, kMultiplyWarps * kCluster);
    }
    BarrierInitFence();
  }
  return ring;
}

// Sums over `steps` stages into c, for warpgroup `group` (0 or 1).
// B operand of step i of a stage: `b_block` as in Operand, `b_step` bytes from one 16 to the next.
template <bool kTransposed>
__device__ __forceinline__ void MultiplyStages(Ring& ring, int steps, int group, uint32_t b_block, uint32_t b_step,
                                               float (&c)[128]) {
  uint32_t previous = 0;
  for (int step = 0; step < steps; ++step) {
    BarrierWait(ring.Full(), ring.parity);
    MatrixFence();
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i) {
      const uint64_t a = Operand(ring.A() + group * 64 * 128 + i * 32, 1024, 16);
      const uint64_t b = Operand(ring.B() + i * b_step, 1024, b_block);
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

// What a warpgroup does that has no rows in the tile.
__device__ __forceinline__ void SkipStages(Ring& ring, int steps) {
  for (int step = 0; step < steps; ++step) {
    BarrierWait(ring.Full(), ring.parity);
    Release(ring.Empty());
    ring.Next();
  }
}

}  // namespace outrider::kernels::cuda
