#include "moe/masks.h"

#include <algorithm>
#include <bit>

#include <xxhash.h>

#include "base/check.h"

namespace outrider::moe {

Masks::Masks(int64_t experts, int64_t layers, int64_t channels)
    : experts_(experts), layers_(layers), channels_(channels), signatures_(static_cast<size_t>(layers * channels), 0) {
  OUTRIDER_CHECK(experts >= 1 && experts <= kExpertsMax, experts, " experts, expected 1 to ", kExpertsMax);
  OUTRIDER_CHECK(layers >= 1 && channels >= 1, layers, " layers of ", channels, " channels");
}

size_t Masks::At(int64_t layer, int64_t channel) const {
  OUTRIDER_CHECK(layer >= 0 && layer < layers_, "layer ", layer, " of ", layers_);
  OUTRIDER_CHECK(channel >= 0 && channel < channels_, "channel ", channel, " of ", channels_);
  return static_cast<size_t>(layer * channels_ + channel);
}

void Masks::SetExpert(int64_t layer, int64_t expert, std::span<const int64_t> channels) {
  OUTRIDER_CHECK(expert >= 0 && expert < experts_, "expert ", expert, " of ", experts_);
  const auto bit = static_cast<Signature>(1U << expert);
  for (int64_t c = 0; c < channels_; ++c) signatures_[At(layer, c)] &= static_cast<Signature>(~bit);
  for (const int64_t c : channels) signatures_[At(layer, c)] |= bit;
}

void Masks::SetLayer(int64_t layer, std::span<const Signature> signatures) {
  OUTRIDER_CHECK(static_cast<int64_t>(signatures.size()) == channels_, signatures.size(), " of ", channels_);
  for (const Signature s : signatures)
    OUTRIDER_CHECK((s & ~Full()) == 0, "signature ", s, " of ", experts_, " experts");
  std::ranges::copy(signatures, signatures_.begin() + static_cast<int64_t>(At(layer, 0)));
}

bool Masks::Has(int64_t layer, int64_t expert, int64_t channel) const {
  return ((signatures_[At(layer, channel)] >> expert) & 1U) != 0;
}

std::span<const Signature> Masks::Layer(int64_t layer) const {
  return {signatures_.data() + At(layer, 0), static_cast<size_t>(channels_)};
}

std::vector<int64_t> Masks::ChannelsOf(int64_t layer, int64_t expert) const {
  std::vector<int64_t> found;
  for (int64_t c = 0; c < channels_; ++c) {
    if (Has(layer, expert, c)) found.push_back(c);
  }
  return found;
}

LayerCounts Masks::Count(int64_t layer) const {
  LayerCounts counts;
  counts.active.assign(static_cast<size_t>(experts_), 0);
  std::vector<bool> seen(size_t{1} << experts_, false);
  for (const Signature s : Layer(layer)) {
    counts.permanent += s == Full() ? 1 : 0;
    counts.dead += s == 0 ? 1 : 0;
    if (s != 0 && !seen[s]) ++counts.live_signatures;
    seen[s] = true;
    for (size_t i = 0; i < counts.active.size(); ++i) counts.active[i] += (s >> i) & 1;
  }
  counts.united = channels_ - counts.dead;
  return counts;
}

int64_t Masks::Delta(int64_t layer, int64_t from, int64_t to) const {
  return std::ranges::count_if(Layer(layer),
                               [&](Signature s) { return ((s >> to) & 1) != 0 && ((s >> from) & 1) == 0; });
}

double Masks::MeanDelta(int64_t layer) const {
  if (experts_ < 2) return 0;
  int64_t sum = 0;
  for (int64_t i = 0; i < experts_ * experts_; ++i) sum += Delta(layer, i / experts_, i % experts_);
  return static_cast<double>(sum) / static_cast<double>(experts_ * (experts_ - 1));
}

uint64_t Masks::Hash() const {
  const int64_t shape[] = {experts_, layers_, channels_};
  const uint64_t seed = XXH3_64bits(shape, sizeof(shape));
  return XXH3_64bits_withSeed(signatures_.data(), signatures_.size() * sizeof(Signature), seed);
}

}  // namespace outrider::moe
