#pragma once
// Memory aligned to cache lines, in large pages where it is large, and a scratch area that a caller keeps between calls
// so that nothing is allocated anew.

#include <cstddef>
#include <cstdint>

namespace outrider::kernels {

constexpr int64_t kLineBytes = 64;

class AlignedBytes {
 public:
  AlignedBytes() = default;
  AlignedBytes(AlignedBytes&& other) noexcept;
  AlignedBytes& operator=(AlignedBytes&& other) noexcept;
  ~AlignedBytes();

  // Content is lost and undefined afterwards. Throws std::bad_alloc.
  void Resize(int64_t bytes);
  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  void Free();

  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// Sizes are declared first, then the memory is taken once: `at = Add(bytes)` ..., Commit(), Get(at).
class Scratch {
 public:
  void Clear() { used_ = 0; }
  int64_t Add(int64_t bytes);
  void Commit();
  std::byte* Get(int64_t offset) { return memory_.data() + offset; }

 private:
  AlignedBytes memory_;
  int64_t used_ = 0;
};

}  // namespace outrider::kernels
