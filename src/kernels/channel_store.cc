#include "kernels/channel_store.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "base/check.h"
#include "kernels/bf16.h"
#include "kernels/int8_block.h"

namespace outrider::kernels {
namespace {

struct Sizes {
  int64_t channels = 0, width = 0;
};

base::Result<void> Check(const Sizes& dense, std::span<const Signature> signatures, int64_t experts) {
  if (dense.channels < 1 || dense.width < 1 || dense.width % kWidthMultiple != 0)
    return base::Fail("E_SHAPE", std::to_string(dense.channels) + " channels of width " + std::to_string(dense.width) +
                                     ": expected at least one channel and a multiple of " +
                                     std::to_string(kWidthMultiple));
  if (static_cast<int64_t>(signatures.size()) != dense.channels)
    return base::Fail("E_SHAPE", std::to_string(signatures.size()) + " signatures, expected one for each of " +
                                     std::to_string(dense.channels) + " channels");
  if (experts < 1 || experts > kExpertsMax)
    return base::Fail("E_EXPERTS", std::to_string(experts) + " experts, expected 1 to " + std::to_string(kExpertsMax));
  for (size_t c = 0; c < signatures.size(); ++c)
    if ((signatures[c] >> experts) != 0)
      return base::Fail("E_EXPERTS", "channel " + std::to_string(c) + " has signature " +
                                         std::to_string(signatures[c]) + ", but there are " + std::to_string(experts) +
                                         " experts");
  return {};
}

template <class T>
void Fill(const DenseFfn& dense, T* records) {
  const int64_t d = dense.width;
  const auto* gate = static_cast<const T*>(dense.gate);
  const auto* up = static_cast<const T*>(dense.up);
  const auto* down = static_cast<const T*>(dense.down);
  const size_t row_bytes = static_cast<size_t>(d) * sizeof(T);
  for (int64_t c = 0; c < dense.channels; ++c) {
    T* record = records + c * 3 * d;
    std::memcpy(record, gate + c * d, row_bytes);
    std::memcpy(record + d, up + c * d, row_bytes);
    for (int64_t o = 0; o < d; ++o) record[2 * d + o] = down[o * dense.channels + c];
  }
}

// Returns what the numbers were divided by: 1 if all of them are zero.
float DivideByRootMeanSquare(std::span<float> numbers) {
  double squares = 0;
  for (const float v : numbers) squares += static_cast<double>(v) * v;
  const auto root = static_cast<float>(std::sqrt(squares / static_cast<double>(numbers.size())));
  if (root == 0) return 1;
  for (float& v : numbers) v /= root;
  return root;
}

// One part of a record: 0 gate, 1 up, 2 down.
struct RecordPart {
  std::byte* record = nullptr;
  int64_t width = 0;
  int64_t part = 0;

  // Numbers [first, first + kBlock).
  void Write(Number number, int64_t first, const float* values) const {
    const int64_t at = part * width + first;
    if (number == Number::kF32) {
      std::memcpy(record + at * 4, values, static_cast<size_t>(kBlock) * 4);
      return;
    }
    if (number == Number::kBf16) {
      uint16_t bits[kBlock];
      std::transform(values, values + kBlock, bits, Bf16Of);
      std::memcpy(record + at * 2, bits, sizeof(bits));
      return;
    }
    const uint16_t scale = ScaleOf(values);
    std::memcpy(record + 3 * width + at / kBlock * kScaleBytes, &scale, kScaleBytes);
    for (int64_t i = 0; i < kBlock; ++i)
      record[at + i] = static_cast<std::byte>(WholeOf(values[i], FloatOfHalf(scale)));
  }
};

}  // namespace

ChannelStore::ChannelStore(Number number, int64_t width, std::span<const Signature> signatures, int64_t experts)
    : number_(number), width_(width), signatures_(signatures.begin(), signatures.end()) {
  const auto channels = static_cast<int64_t>(signatures.size());
  const int64_t bytes = channels * record_bytes();
  records_.Resize(bytes + kLineBytes);  // vectors of scales may be read past the last record
  std::fill_n(records_.data() + bytes, kLineBytes, std::byte{0});
  lists_.resize(static_cast<size_t>(experts));
  for (size_t c = 0; c < signatures.size(); ++c)
    for (int64_t i = 0; i < experts; ++i)
      if ((signatures[c] >> i & 1U) != 0) lists_[static_cast<size_t>(i)].push_back(static_cast<int32_t>(c));
}

base::Result<ChannelStore> ChannelStore::Pack(const DenseFfn& dense, std::span<const Signature> signatures,
                                              int64_t experts) {
  if (auto checked = Check({dense.channels, dense.width}, signatures, experts); !checked)
    return tl::unexpected(checked.error());
  OUTRIDER_CHECK(dense.number != Number::kI8, "whole numbers are made from fp32");
  ChannelStore store(dense.number, dense.width, signatures, experts);
  if (dense.number == Number::kF32)
    Fill(dense, reinterpret_cast<uint32_t*>(store.records_.data()));
  else
    Fill(dense, reinterpret_cast<uint16_t*>(store.records_.data()));
  return store;
}

base::Result<ChannelStore> ChannelStore::Pack(const ChannelSource& source, Number number,
                                              std::span<const Signature> signatures, int64_t experts) {
  const int64_t channels = source.channels, width = source.width;
  if (auto checked = Check({channels, width}, signatures, experts); !checked) return tl::unexpected(checked.error());
  ChannelStore store(number, width, signatures, experts);
  const int64_t record_bytes = store.record_bytes();
  if (number == Number::kI8)
    std::fill_n(store.records_.data(), channels * record_bytes, std::byte{0});  // a record ends in padding
  std::vector<float> row(static_cast<size_t>(width));
  for (int64_t c = 0; c < channels; ++c) {
    for (const int64_t part : {0, 1}) {
      (part == 0 ? source.gate : source.up)(c, row.data());
      const RecordPart to{store.records_.data() + c * record_bytes, width, part};
      for (int64_t j = 0; j < width; j += kBlock) to.Write(number, j, row.data() + j);
    }
  }
  std::vector<float> rows(static_cast<size_t>(kBlock * channels));
  for (int64_t o = 0; o < width; o += kBlock) {
    for (int64_t i = 0; i < kBlock; ++i) {
      const std::span of_output(rows.data() + i * channels, static_cast<size_t>(channels));
      source.down(o + i, of_output.data());
      if (number == Number::kI8) store.output_scales_.push_back(DivideByRootMeanSquare(of_output));
    }
    for (int64_t c = 0; c < channels; ++c) {
      float column[kBlock];
      for (int64_t i = 0; i < kBlock; ++i) column[i] = rows[static_cast<size_t>(i * channels + c)];
      RecordPart{store.records_.data() + c * record_bytes, width, 2}.Write(number, o, column);
    }
  }
  return store;
}

}  // namespace outrider::kernels
