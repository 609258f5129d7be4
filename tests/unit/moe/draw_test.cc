// Which texts a step is tuned on.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "moe/keyed_permutation.h"
#include "moe/token_data.h"

namespace outrider::moe {
namespace {

using testing::ElementsAre;

TokenData TwoDomains(int64_t left, int64_t right) {
  std::vector<std::map<std::string, TokenFile>> splits(2);
  splits[0]["train"] = {std::vector<int32_t>(static_cast<size_t>(left), 1), {0}};
  splits[1]["train"] = {std::vector<int32_t>(static_cast<size_t>(right), 1), {0}};
  return TokenData(10, {"a", "b"}, splits);
}

TEST(TokenData, DrawsAreBalancedInRangeAndRepeatable) {
  const TokenData data = TwoDomains(100, 100);
  const auto places = data.Draw(1, Use::kExpert, 21, 7, 90);
  EXPECT_EQ(places, data.Draw(1, Use::kExpert, 21, 7, 90));
  EXPECT_NE(places, data.Draw(2, Use::kExpert, 21, 7, 90));
  EXPECT_NE(places, data.Draw(1, Use::kRouter, 21, 7, 90));
  for (size_t s = 0; s < places.size(); ++s) {
    EXPECT_EQ(places[s].domain, (21 + s) % 2);
    EXPECT_LE(places[s].offset, 10);
  }
  const auto spread = data.Spread("train", 3, 20);
  EXPECT_THAT(spread, ElementsAre(Place{0, 0}, Place{1, 0}, Place{0, 40}, Place{1, 40}, Place{0, 80}, Place{1, 80}));
}

TEST(TokenData, NoPlaceComesTwiceInAPassAndAnyPartOfTheSequenceIsKnown) {
  const TokenData data = TwoDomains(1000, 401);  // 110 and 43 places of 9 tokens
  const auto all = data.Draw(5, Use::kExpert, 0, 500, 10);
  std::vector<Place> parts;
  for (const auto& [first, samples] : std::vector<std::pair<int64_t, int64_t>>{{0, 3}, {3, 300}, {303, 197}}) {
    const auto part = data.Draw(5, Use::kExpert, first, samples, 10);
    parts.insert(parts.end(), part.begin(), part.end());
  }
  EXPECT_EQ(parts, all);
  for (const auto& [domain, cuts] : std::map<int64_t, size_t>{{0, 110}, {1, 43}}) {
    std::vector<int64_t> offsets;
    for (const Place& place : all) {
      if (place.domain == domain) offsets.push_back(place.offset);
    }
    std::set<std::vector<int64_t>> orders;
    for (size_t begin = 0; begin + cuts <= offsets.size(); begin += cuts) {
      std::vector<int64_t> pass(offsets.begin() + static_cast<int64_t>(begin),
                                offsets.begin() + static_cast<int64_t>(begin + cuts));
      EXPECT_FALSE(std::ranges::is_sorted(pass));
      orders.insert(pass);
      std::ranges::sort(pass);
      for (size_t i = 1; i < pass.size(); ++i) EXPECT_EQ(pass[i] - pass[i - 1], 9) << "places side by side";
      EXPECT_GE(pass.front(), 0);
      EXPECT_LE(pass.back() + 10, domain == 0 ? 1000 : 401);
    }
    EXPECT_EQ(orders.size(), 250 / cuts) << "every pass has an order of its own";
  }
}

TEST(TokenData, AnyPassOfAnyLengthIsAPermutation) {
  for (const uint64_t size : {1, 2, 3, 7, 64, 65, 1000}) {
    for (uint64_t key = 0; key < 20; ++key) {
      std::vector<bool> seen(size, false);
      for (uint64_t i = 0; i < size; ++i) {
        const uint64_t value = KeyedPermutation(key, size, i);
        ASSERT_LT(value, size);
        EXPECT_FALSE(seen[value]);
        seen[value] = true;
      }
    }
  }
}

}  // namespace
}  // namespace outrider::moe
