#pragma once
// Storage formats of the kernels. Sums are fp32 in all of them.
// Units that are compiled for one instruction set include this header: nothing here may have external linkage.

#include <cstdint>

namespace outrider::kernels {

// kI8: blocks of kBlock whole numbers of one byte, each block with a scale in half precision.
enum class Number : uint8_t { kF32, kBf16, kI8 };

constexpr int64_t kNumbers = 3;
constexpr int64_t kBlock = 32;
constexpr int64_t kScaleBytes = 2;

// Of one number; scales of kI8 apart.
constexpr int64_t BytesOf(Number number) { return number == Number::kF32 ? 4 : number == Number::kBf16 ? 2 : 1; }

// Of one channel record (channel_store.h).
constexpr int64_t RecordBytes(Number number, int64_t width) {
  if (number != Number::kI8) return 3 * width * BytesOf(number);
  return (3 * (width + width / kBlock * kScaleBytes) + 63) / 64 * 64;
}

}  // namespace outrider::kernels
