#include "kernels/scratch.h"

#include <new>
#include <utility>

namespace outrider::kernels {

AlignedBytes::AlignedBytes(AlignedBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

AlignedBytes& AlignedBytes::operator=(AlignedBytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

AlignedBytes::~AlignedBytes() { ::operator delete(data_, std::align_val_t{kLineBytes}); }

void AlignedBytes::Resize(int64_t bytes) {
  auto* fresh = static_cast<std::byte*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{kLineBytes}));
  ::operator delete(data_, std::align_val_t{kLineBytes});
  data_ = fresh;
  size_ = bytes;
}

int64_t Scratch::Add(int64_t bytes) {
  const int64_t at = used_;
  used_ += (bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
  return at;
}

void Scratch::Commit() {
  if (used_ > memory_.size()) memory_.Resize(used_);
}

}  // namespace outrider::kernels
