#include "sampling/shortlist.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "sampling/lanes.h"

namespace outrider::sampling {
namespace {

constexpr size_t kGroup = 16;
constexpr size_t kChunk = kGroup * kLanes;  // lane by lane a group
constexpr size_t kGroupsPerRank = 16;       // so few of the most likely share a group
constexpr float kInfinity = std::numeric_limits<float>::infinity();

Floats LargestByLane(const float* chunk) {
  Floats even = Load(chunk), odd = Load(chunk + kLanes);
  for (size_t i = 2 * kLanes; i < kChunk; i += 2 * kLanes) {
    even = Larger(Load(chunk + i), even);
    odd = Larger(Load(chunk + i + kLanes), odd);
  }
  return Larger(even, odd);
}

}  // namespace

Shortlist::Shortlist(std::span<const float> logits)
    : logits_(logits), groups_((logits.size() + kChunk - 1) / kChunk * kLanes) {
  const size_t whole = logits.size() / kChunk;
  for (size_t chunk = 0; chunk < whole; ++chunk)
    Store(groups_.data() + chunk * kLanes, LargestByLane(logits.data() + chunk * kChunk));
  if (whole * kChunk == logits.size()) return;
  float last[kChunk];
  std::fill(std::copy(logits.begin() + static_cast<std::ptrdiff_t>(whole * kChunk), logits.end(), last), last + kChunk,
            -kInfinity);
  Store(groups_.data() + whole * kLanes, LargestByLane(last));
}

// `count` groups have a logit as large as their least one, so at least that many logits are.
float Shortlist::FloorOf(size_t count) const {
  if (count > groups_.size()) return -kInfinity;
  std::vector<float> groups = groups_;
  while (groups.size() / 2 >= count * kGroupsPerRank) {  // larger groups
    const size_t half = (groups.size() + 1) / 2;
    for (size_t i = half; i < groups.size(); ++i) groups[i - half] = std::max(groups[i - half], groups[i]);
    groups.resize(half);
  }
  const auto least = groups.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(groups.begin(), least, groups.end(), std::greater<>());
  return *least;
}

std::vector<Rank> Shortlist::From(float floor, size_t equals) const {
  floor = std::max(floor, std::numeric_limits<float>::lowest());
  const auto in_chunk = [&](size_t chunk) {
    const float* groups = groups_.data() + chunk * kLanes;
    return groups[0] >= floor || groups[1] >= floor || groups[2] >= floor || groups[3] >= floor;
  };
  const size_t chunks = groups_.size() / kLanes;
  size_t most = 0;
  for (size_t chunk = 0; chunk < chunks; ++chunk) most += in_chunk(chunk) ? kChunk : 0;
  std::vector<Rank> found(most);
  size_t count = 0;
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    if (!in_chunk(chunk)) continue;
    const size_t end = std::min(logits_.size(), (chunk + 1) * kChunk);
    for (size_t id = chunk * kChunk; id < end; ++id) {
      const float logit = logits_[id];
      const bool equal = logit == floor && equals > 0;
      found[count] = RankOf(logit, static_cast<int32_t>(id));
      count += logit > floor || equal ? 1 : 0;
      equals -= equal ? 1 : 0;
    }
  }
  found.resize(count);
  return found;
}

std::vector<Rank> Shortlist::From(float floor) const { return From(floor, logits_.size()); }

std::vector<Rank> Shortlist::MostLikely(size_t count) const {
  count = std::min(count, logits_.size());
  if (count == 0) return {};
  const float floor = FloorOf(count);
  return floor == -kInfinity ? From(floor) : From(floor, count);
}

}  // namespace outrider::sampling
