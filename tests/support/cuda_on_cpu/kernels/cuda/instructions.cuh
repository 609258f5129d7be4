#pragma once
// Instead of src/kernels/cuda/instructions.cuh: the same functions on the CPU.
#include "block.h"

namespace outrider::kernels::cuda {

inline void StartNext() {}
inline void WaitForPrevious() {}
inline void Prefetch(const void* at) { (void)*static_cast<const volatile char*>(at); }  // a wild address shows

inline void PrefetchRange(const void* at, int bytes) {
  Prefetch(at);
  Prefetch(static_cast<const char*>(at) + bytes - 1);
}

template <class Number>
Number LoadOrZero(const void* at, bool valid) {
  Number value{};
  if (valid) std::memcpy(&value, at, sizeof(value));
  return value;
}
inline uint4 LoadWeights(const uint8_t* at, bool valid) { return LoadOrZero<uint4>(at, valid); }
inline uint4 LoadResult(const uint8_t* at, bool valid) { return LoadOrZero<uint4>(at, valid); }
inline uint2 LoadResult8(const void* at, bool valid) { return LoadOrZero<uint2>(at, valid); }

inline float Bf16At(uint32_t pair, int i) { return cuda_on_cpu::Of<float>(i == 0 ? pair << 16 : pair & 0xffff0000U); }

// Where lanes hold the operands: PTX, m16n8k16 with bf16.
inline void Multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  const uint32_t own[] = {a0, a1, a2, a3, b0, b1};
  const auto& all = cuda_on_cpu::current->Exchange(~0U, own, 6);
  const int lane = cuda_on_cpu::current->thread() % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      const auto* a = all.words[row % 8 * 4 + k % 8 / 2];
      const auto* b = all.words[column * 4 + k % 8 / 2];
      sum += Bf16At(a[row / 8 + k / 8 * 2], k % 2) * Bf16At(b[4 + k / 8], k % 2);
    }
    c[i] += sum;
  }
}

inline void CopyToShared(void* to, const void* from, bool valid) {
  const auto value = LoadOrZero<uint4>(from, valid);
  std::memcpy(to, &value, sizeof(value));
}
inline void CommitCopies() {}
template <int kPending>
void WaitForCopies() {}
inline uint8_t* DynamicShared() { return cuda_on_cpu::dynamic_shared; }

inline void ArriveAtCluster() {}
inline void WaitForCluster() { cuda_on_cpu::current->SyncAll(); }
inline void SyncCluster() { cuda_on_cpu::current->SyncAll(); }
inline const float* OfBlock(const float* own, int rank) {
  return static_cast<const float*>(cuda_on_cpu::current->OfBlock(own, rank));
}
inline float* OfBlock(float* own, int rank) {
  return const_cast<float*>(OfBlock(static_cast<const float*>(own), rank));
}

}  // namespace outrider::kernels::cuda
