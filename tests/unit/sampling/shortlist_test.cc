#include "sampling/shortlist.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>

#include "unit/sampling/rows.h"

namespace outrider::sampling {
namespace {

std::vector<Rank> AllRanks(const std::vector<float>& logits, float floor) {
  std::vector<Rank> ranks;
  for (size_t id = 0; id < logits.size(); ++id)
    if (logits[id] >= floor) ranks.push_back(RankOf(logits[id], static_cast<int32_t>(id)));
  return ranks;
}

TEST(Shortlist, RanksFallAndThenRiseWithIds) {
  constexpr std::array kFalling = {3e38F, 1.0F, 1e-45F, 0.0F, -1e-45F, -1.0F, -3e38F};
  for (size_t i = 0; i < kFalling.size(); ++i) {
    EXPECT_EQ(LogitOf(RankOf(kFalling[i], 7)), kFalling[i]);
    EXPECT_EQ(IdOf(RankOf(kFalling[i], 7)), 7);
    EXPECT_LT(RankOf(kFalling[i], 7), RankOf(kFalling[i], 8));
    if (i > 0) {
      EXPECT_LT(RankOf(kFalling[i - 1], 9), RankOf(kFalling[i], 2));
    }
  }
  EXPECT_EQ(RankOf(-0.0F, 5), RankOf(0.0F, 5));
}

TEST(Shortlist, HoldsTheMostLikely) {
  std::mt19937 random(1);
  for (int i = 0; i < 210; ++i) {
    const std::vector<float> logits = RandomRow(random, RandomSize(random), i % kRowKinds);
    const Shortlist shortlist(logits);
    const float some = logits[random() % logits.size()];
    EXPECT_EQ(shortlist.From(some), AllRanks(logits, some));
    std::vector<Rank> all = AllRanks(logits, std::numeric_limits<float>::lowest());
    std::sort(all.begin(), all.end());
    for (const size_t count :
         {size_t{0}, size_t{1}, size_t{2}, size_t{16}, size_t{100}, all.size() - 1, all.size() + 5}) {
      std::vector<Rank> found = shortlist.MostLikely(count);
      std::sort(found.begin(), found.end());
      const size_t common = std::min(count, all.size());
      ASSERT_GE(found.size(), common);
      EXPECT_TRUE(std::equal(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(common), found.begin()));
    }
  }
}

TEST(Shortlist, IsShortWithEqualsToo) {
  std::mt19937 random(2);
  for (int kind = 0; kind < kRowKinds; ++kind)
    EXPECT_LE(Shortlist(RandomRow(random, 50'000, kind)).MostLikely(10).size(), 200u) << kind;
}

}  // namespace
}  // namespace outrider::sampling
