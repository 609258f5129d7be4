#include "kernels/scratch.h"

#include <sys/mman.h>

#include <new>
#include <utility>

namespace outrider::kernels {
namespace {

// Gathered reads touch a page each; with small pages they wait for address translation as much as for data.
constexpr int64_t kLargePage = int64_t{2} << 20;

std::align_val_t AlignmentOf(int64_t bytes) {
  return std::align_val_t{static_cast<size_t>(bytes >= kLargePage ? kLargePage : kLineBytes)};
}

}  // namespace

AlignedBytes::AlignedBytes(AlignedBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

AlignedBytes& AlignedBytes::operator=(AlignedBytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

AlignedBytes::~AlignedBytes() { Free(); }

void AlignedBytes::Free() {
  if (data_ != nullptr) ::operator delete(data_, AlignmentOf(size_));
}

void AlignedBytes::Resize(int64_t bytes) {
  if (bytes >= kLargePage) bytes = (bytes + kLargePage - 1) / kLargePage * kLargePage;
  auto* fresh = static_cast<std::byte*>(::operator new(static_cast<size_t>(bytes), AlignmentOf(bytes)));
  if (bytes >= kLargePage) madvise(fresh, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a wish, which may be refused
  Free();
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
