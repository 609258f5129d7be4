#pragma once
// Storage formats of the kernels. Sums are fp32 in both.
// Units that are compiled for one instruction set include this header: nothing here may have external linkage.

#include <cstdint>

namespace outrider::kernels {

enum class Number : uint8_t { kF32, kBf16 };

constexpr int64_t BytesOf(Number number) { return number == Number::kF32 ? 4 : 2; }

}  // namespace outrider::kernels
