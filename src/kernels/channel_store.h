#pragma once
// One layer's FFN as channel records, in stored order. Channel c is one contiguous record of 3 * width numbers:
//
//   gate row c | up row c | down column c
//
// so that one channel is one range of memory, whatever the experts are. Each channel is stored once; which experts have
// it says its signature (bit i: expert i). Channels with equal signatures are best kept together, but nothing here
// depends on it.
//
// For kI8 the scales of the blocks lie behind the numbers, fp16, in the same order; a record fills whole lines. There,
// down is divided by one number for each output before it is rounded: a block takes numbers of many outputs, which
// would else all have the step of the largest.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/number.h"
#include "kernels/scratch.h"

namespace outrider::kernels {

constexpr int64_t kExpertsMax = 16;
constexpr int64_t kWidthMultiple = 32;  // width must be a multiple: all vector loops are whole

using Signature = uint16_t;

// Dense matrices of one layer in stored order, row major: gate and up [channels, width], down [width, channels].
struct DenseFfn {
  const void* gate = nullptr;
  const void* up = nullptr;
  const void* down = nullptr;
  Number number = Number::kF32;
  int64_t channels = 0;
  int64_t width = 0;
};

// The channels of one layer in stored order, read as fp32.
struct ChannelSource {
  int64_t channels = 0;
  int64_t width = 0;
  std::function<void(int64_t channel, float* to)> gate, up;  // `width` numbers
  std::function<void(int64_t output, float* to)> down;       // one number per channel
};

class ChannelStore {
 public:
  // Copies the matrices into records. E_SHAPE: sizes that do not fit; E_EXPERTS: a signature of an expert >= experts.
  static base::Result<ChannelStore> Pack(const DenseFfn& dense, std::span<const Signature> signatures, int64_t experts);

  // The same from fp32, stored as `number`. Throws std::bad_alloc.
  static base::Result<ChannelStore> Pack(const ChannelSource& source, Number number,
                                         std::span<const Signature> signatures, int64_t experts);

  const std::byte* records() const { return records_.data(); }
  // kI8: what the sums over the channels are multiplied with, one for each output. Null for other numbers.
  const float* output_scales() const { return output_scales_.empty() ? nullptr : output_scales_.data(); }
  int64_t record_bytes() const { return RecordBytes(number_, width_); }
  Number number() const { return number_; }
  int64_t channels() const { return static_cast<int64_t>(signatures_.size()); }
  int64_t width() const { return width_; }
  int64_t experts() const { return static_cast<int64_t>(lists_.size()); }
  std::span<const Signature> signatures() const { return signatures_; }
  // Channels of one expert, ascending in stored order.
  std::span<const int32_t> ChannelsOf(int64_t expert) const { return lists_[static_cast<size_t>(expert)]; }

 private:
  ChannelStore(Number number, int64_t width, std::span<const Signature> signatures, int64_t experts);

  AlignedBytes records_;
  std::vector<float> output_scales_;
  Number number_ = Number::kF32;
  int64_t width_ = 0;
  std::vector<Signature> signatures_;
  std::vector<std::vector<int32_t>> lists_;
};

}  // namespace outrider::kernels
