#include "base/ids.h"

#include <gtest/gtest.h>

#include <type_traits>
#include <unordered_set>

namespace outrider::base {
namespace {

using AppleId = Id<struct AppleTag>;
using PearId = Id<struct PearTag>;

static_assert(!std::is_convertible_v<uint32_t, AppleId>, "numbers must not become ids by accident");
static_assert(!std::is_convertible_v<AppleId, PearId> && !std::is_constructible_v<AppleId, PearId>);

TEST(Id, DefaultIsInvalidAndZeroIsNot) {
  EXPECT_FALSE(AppleId{}.IsValid());
  EXPECT_TRUE(AppleId{0}.IsValid());
  EXPECT_NE(AppleId{}, AppleId{0});
}

TEST(Id, OrdersByValue) {
  EXPECT_LT(AppleId{1}, AppleId{2});
  EXPECT_EQ(AppleId{7}, AppleId{7});
}

TEST(Id, WorksAsKey) {
  const std::unordered_set<AppleId> ids{AppleId{1}, AppleId{2}, AppleId{1}};
  EXPECT_EQ(ids.size(), 2u);
  EXPECT_TRUE(ids.contains(AppleId{2}));
}

}  // namespace
}  // namespace outrider::base
