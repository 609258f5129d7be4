#pragma once
// Units of a launch, handed to clusters in their order as clusters become free: clusters are not equally fast.

#include "kernels/cuda/pipeline.cuh"

namespace outrider::kernels::cuda {

struct TicketMemory {
  uint64_t full[2], empty[2];
  int unit[2];
};

// What a thread holds. All warps of the cluster take every ticket; one thread of its first block puts them into both.
struct Tickets {
  uint32_t memory;  // shared address of a TicketMemory
  int slot = 0, put_slot = 0;
  uint32_t parity = 0, put_parity = 1;

  __device__ static void Open(TicketMemory& memory) {
    constexpr int kReaders = kCluster * kBlockThreads / 32;
    for (int i = 0; i < 2; ++i) {
      BarrierInit(SharedAddress(&memory.full[i]), 1);
      BarrierInit(SharedAddress(&memory.empty[i]), kReaders);
    }
  }

  __device__ int Take() {
    BarrierWaitCluster(memory + slot * 8, parity);
    const int unit = Uniform(LoadShared(memory + 32 + slot * 4));
    __syncwarp();
    if (threadIdx.x % 32 == 0) BarrierArriveAt(memory + 16 + slot * 8, 0);
    Step(slot, parity);
    return unit;
  }

  // The next of the units behind those that clusters start with.
  __device__ void Put(int* counter) {
    const int unit = atomicAdd(counter, 1) + static_cast<int>(gridDim.x) / kCluster;
    BarrierWaitCluster(memory + 16 + put_slot * 8, put_parity);
    for (int rank = 0; rank < kCluster; ++rank) StoreAt(memory + 32 + put_slot * 4, memory + put_slot * 8, rank, unit);
    Step(put_slot, put_parity);
  }

 private:
  __device__ static void Step(int& slot, uint32_t& parity) {
    slot ^= 1;
    if (slot == 0) parity ^= 1;
  }
};

}  // namespace outrider::kernels::cuda
