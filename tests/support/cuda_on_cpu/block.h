#pragma once
// CUDA kernels of the decoding step and the router on the CPU, for tests without a GPU: a thread of a block is a fiber
// that gives way where it waits for others, a block an OS thread, and what blocks share lies in that thread's own
// memory. Index arithmetic and collective operations are those of the device; time, caches and the order of fibers are
// not.

// longjmp goes from one stack to another here, which the fortified form takes for an error.
#undef _FORTIFY_SOURCE

// clang-format off
#include <cuda_runtime.h>
#include <cuda_bf16.h>
// clang-format on
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#undef __shared__
#undef __launch_bounds__
#define __shared__ static thread_local
#define __launch_bounds__(...)

namespace cuda_on_cpu {

// Blocks that exchange shared memory.
struct Cluster {
  explicit Cluster(int count) : barrier(count), markers(static_cast<size_t>(count)) {}
  std::barrier<> barrier;
  std::vector<char*> markers;  // the same place of each block's memory
};

class Block;
inline thread_local Block* current = nullptr;
inline thread_local char marker = 0;
alignas(16) inline thread_local uint8_t dynamic_shared[227 * 1024];

class Block {
 public:
  static constexpr size_t kStack = size_t{128} * 1024;

  // stacks: kStack bytes for each thread.
  Block(dim3 index, dim3 blocks, int threads, Cluster& cluster, int rank, char* stacks)
      : index_(index), blocks_(blocks), count_(threads), cluster_(cluster), rank_(rank), stacks_(stacks) {}

  void Run(const std::function<void()>& body) {
    current = this;
    cluster_.markers[static_cast<size_t>(rank_)] = &marker;
    body_ = &body;
    fibers_.resize(static_cast<size_t>(count_));
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stacks_ + i * kStack;
      fiber.context.uc_stack.ss_size = kStack;
      makecontext(&fiber.context, &Block::Start, 0);
    }
    left_ = count_;
    while (left_ > 0) {
      ran_ = 0;
      for (now_ = 0; now_ < count_; ++now_) {
        if (const Fiber& fiber = fibers_[static_cast<size_t>(now_)]; !fiber.done && !fiber.waits()) Resume();
      }
      if (ran_ == 0) std::abort();  // all wait for each other
    }
    cluster_.barrier.arrive_and_wait();  // nobody's memory goes while others read
  }

  int thread() const { return now_; }
  int threads() const { return count_; }
  dim3 index() const { return index_; }
  dim3 blocks() const { return blocks_; }

  void Sync() {
    const int generation = generation_;
    if (++arrived_ == count_) {
      arrived_ = 0;
      ++generation_;
    }
    if (generation_ == generation) WaitFor(generation_);
  }

  void SyncAll() {
    Sync();
    if (now_ == 0) cluster_.barrier.arrive_and_wait();
    Sync();
  }

  const void* OfBlock(const void* own, int rank) const {
    const auto offset = static_cast<const char*>(own) - &marker;
    return cluster_.markers[static_cast<size_t>(rank)] + offset;
  }

  // What each lane of `mask` gave, once all did.
  struct Values {
    uint32_t words[32][6];
  };
  const Values& Exchange(uint32_t mask, const uint32_t* words, size_t count) {
    const int place = mask == ~0U ? 32 : std::countr_zero(mask);  // some lanes may be ahead of others
    Meeting& meeting = meetings_[static_cast<size_t>(now_ / 32 * 33 + place)];
    const int lane = now_ % 32;
    std::copy_n(words, count, meeting.given.words[lane]);
    meeting.arrived |= 1U << lane;
    const int generation = meeting.generation;
    if (meeting.arrived == mask) {
      meeting.arrived = 0;
      meeting.seen = meeting.given;
      ++meeting.generation;
    }
    if (meeting.generation == generation) WaitFor(meeting.generation);
    return meeting.seen;
  }

 private:
  struct Fiber {
    ucontext_t context;
    jmp_buf at;
    bool started = false, done = false;
    const int* watched = nullptr;  // goes on when it is no longer `seen`
    int seen = 0;
    bool waits() const { return watched != nullptr && *watched == seen; }
  };
  struct Meeting {
    uint32_t arrived = 0;
    int generation = 0;
    Values given, seen;
  };

  static void Start() {
    (*current->body_)();
    current->fibers_[static_cast<size_t>(current->now_)].done = true;
    --current->left_;
    _longjmp(current->scheduler_, 1);
  }
  // Nothing of this function's own is used behind the jump.
  void Resume() {
    ++ran_;
    if (_setjmp(scheduler_) != 0) return;
    Fiber& fiber = fibers_[static_cast<size_t>(now_)];
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    setcontext(&fiber.context);  // the first time, which gives the fiber its stack
  }
  // Until the number changes.
  void WaitFor(const int& number) {
    Fiber& fiber = fibers_[static_cast<size_t>(now_)];
    fiber.watched = &number;
    fiber.seen = number;
    if (_setjmp(fiber.at) == 0) _longjmp(scheduler_, 1);
  }

  dim3 index_, blocks_;
  int count_, now_ = 0, left_ = 0, ran_ = 0, arrived_ = 0, generation_ = 0;
  Cluster& cluster_;
  int rank_;
  char* stacks_;
  const std::function<void()>* body_ = nullptr;
  jmp_buf scheduler_;
  std::vector<Fiber> fibers_;
  std::vector<Meeting> meetings_{32 * 33};
};

// One cluster after another; clusters lie along x.
inline void RunAll(dim3 blocks, int threads, unsigned cluster, const std::function<void()>& body) {
  const size_t bytes = Block::kStack * static_cast<size_t>(threads);
  const auto stacks = std::make_unique_for_overwrite<char[]>(bytes * cluster);
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; x += cluster) {
        Cluster group(static_cast<int>(cluster));
        std::vector<std::jthread> started;
        for (unsigned rank = 0; rank < cluster; ++rank)
          started.emplace_back([&, rank] {
            Block(dim3(x + rank, y, z), blocks, threads, group, static_cast<int>(rank), stacks.get() + bytes * rank)
                .Run(body);
          });
      }
}

template <class Number>
Number Of(uint32_t word) {
  Number number;
  std::memcpy(&number, &word, 4);
  return number;
}

template <class Number>
const Block::Values& Meet(uint32_t mask, Number number) {
  static_assert(sizeof(Number) == 4);
  uint32_t word;
  std::memcpy(&word, &number, 4);
  return current->Exchange(mask, &word, 1);
}

}  // namespace cuda_on_cpu

#define threadIdx (dim3(static_cast<unsigned>(cuda_on_cpu::current->thread())))
#define blockIdx (cuda_on_cpu::current->index())
#define gridDim (cuda_on_cpu::current->blocks())
#define blockDim (dim3(static_cast<unsigned>(cuda_on_cpu::current->threads())))

inline void __syncthreads() { cuda_on_cpu::current->Sync(); }
template <class Number>
Number __shfl_sync(uint32_t mask, Number number, int from) {
  return cuda_on_cpu::Of<Number>(cuda_on_cpu::Meet(mask, number).words[from][0]);
}
template <class Number>
Number __shfl_xor_sync(uint32_t mask, Number number, int distance) {
  const int lane = cuda_on_cpu::current->thread() % 32;
  return cuda_on_cpu::Of<Number>(cuda_on_cpu::Meet(mask, number).words[lane ^ distance][0]);
}
inline uint32_t __ballot_sync(uint32_t mask, bool value) {
  const auto& all = cuda_on_cpu::Meet(mask, uint32_t{value});
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= (mask >> lane & all.words[lane][0] & 1) << lane;
  return bits;
}
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t value) {
  const auto& all = cuda_on_cpu::Meet(mask, value);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= (mask >> lane & 1) != 0 ? all.words[lane][0] : 0;
  return bits;
}
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<uint32_t>(bits)) + 1; }
inline int __popc(uint32_t bits) { return std::popcount(bits); }
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = uint64_t{high} << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(both >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
  return out;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return std::exp(a); }
inline float rsqrtf(float a) { return 1 / std::sqrt(a); }
inline float __uint_as_float(uint32_t word) { return cuda_on_cpu::Of<float>(word); }
using std::max;
using std::min;
