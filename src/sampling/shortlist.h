#pragma once
// The few ids among which the most likely are, found without sorting a row.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace outrider::sampling {

// A logit and its id as one number: the larger logit is the smaller number, then the lower id; -0 equals +0.
using Rank = uint64_t;
inline Rank RankOf(float logit, int32_t id) {
  const auto bits = std::bit_cast<uint32_t>(logit + 0.0F);
  const uint32_t falling = bits >> 31 != 0 ? bits : ~bits & 0x7fffffffU;
  return uint64_t{falling} << 32 | static_cast<uint32_t>(id);
}
inline float LogitOf(Rank rank) {
  const auto falling = static_cast<uint32_t>(rank >> 32);
  return std::bit_cast<float>(falling >> 31 != 0 ? falling : ~falling & 0x7fffffffU);
}
inline int32_t IdOf(Rank rank) { return static_cast<int32_t>(static_cast<uint32_t>(rank)); }

// The largest logit of each small group of a row. The row has to outlive it.
class Shortlist {
 public:
  explicit Shortlist(std::span<const float> logits);

  // In the order of ids: all logits of at least `floor`.
  std::vector<Rank> From(float floor) const;
  // All of the `count` most likely and maybe others.
  std::vector<Rank> MostLikely(size_t count) const;

 private:
  float FloorOf(size_t count) const;
  std::vector<Rank> From(float floor, size_t equals) const;

  std::span<const float> logits_;
  std::vector<float> groups_;  // kLanes a chunk of the row
};

}  // namespace outrider::sampling
