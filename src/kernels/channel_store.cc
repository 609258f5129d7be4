#include "kernels/channel_store.h"

#include <cstring>
#include <string>

namespace outrider::kernels {
namespace {

base::Result<void> Check(const DenseFfn& dense, std::span<const Signature> signatures, int64_t experts) {
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

}  // namespace

base::Result<ChannelStore> ChannelStore::Pack(const DenseFfn& dense, std::span<const Signature> signatures,
                                              int64_t experts) {
  if (auto checked = Check(dense, signatures, experts); !checked) return tl::unexpected(checked.error());
  ChannelStore store;
  store.number_ = dense.number;
  store.width_ = dense.width;
  store.signatures_.assign(signatures.begin(), signatures.end());
  store.records_.Resize(dense.channels * 3 * dense.width * BytesOf(dense.number));
  if (dense.number == Number::kF32)
    Fill(dense, reinterpret_cast<uint32_t*>(store.records_.data()));
  else
    Fill(dense, reinterpret_cast<uint16_t*>(store.records_.data()));
  store.lists_.resize(static_cast<size_t>(experts));
  for (size_t c = 0; c < signatures.size(); ++c)
    for (int64_t i = 0; i < experts; ++i)
      if ((signatures[c] >> i & 1U) != 0) store.lists_[static_cast<size_t>(i)].push_back(static_cast<int32_t>(c));
  return store;
}

}  // namespace outrider::kernels
