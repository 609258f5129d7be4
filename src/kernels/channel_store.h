#pragma once
// One layer's FFN as channel records, in stored order. Channel c is one contiguous record of 3 * width numbers:
//
//   gate row c | up row c | down column c
//
// so that one channel is one range of memory, whatever the experts are. Each channel is stored once; which experts have
// it says its signature (bit i: expert i). Channels with equal signatures are best kept together, but nothing here
// depends on it.

#include <cstddef>
#include <cstdint>
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

class ChannelStore {
 public:
  // Copies the matrices into records. E_SHAPE: sizes that do not fit; E_EXPERTS: a signature of an expert >= experts.
  static base::Result<ChannelStore> Pack(const DenseFfn& dense, std::span<const Signature> signatures, int64_t experts);

  const std::byte* records() const { return records_.data(); }
  int64_t record_bytes() const { return 3 * width_ * BytesOf(number_); }
  Number number() const { return number_; }
  int64_t channels() const { return static_cast<int64_t>(signatures_.size()); }
  int64_t width() const { return width_; }
  int64_t experts() const { return static_cast<int64_t>(lists_.size()); }
  std::span<const Signature> signatures() const { return signatures_; }
  // Channels of one expert, ascending in stored order.
  std::span<const int32_t> ChannelsOf(int64_t expert) const { return lists_[static_cast<size_t>(expert)]; }

 private:
  ChannelStore() = default;

  AlignedBytes records_;
  Number number_ = Number::kF32;
  int64_t width_ = 0;
  std::vector<Signature> signatures_;
  std::vector<std::vector<int32_t>> lists_;
};

}  // namespace outrider::kernels
