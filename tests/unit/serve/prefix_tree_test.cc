#include "serve/prefix_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"

namespace outrider::serve {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Ids = std::vector<int32_t>;

constexpr PrefixTreeLimits kLimits{.page_tokens = 2, .nodes_max = 8};

// A tree with its pools, and a request that computes texts and hands them in.
class PrefixTreeTest : public testing::Test {
 protected:
  // Inserts a text of two tokens a page with pages of its own, of which only the tree keeps what it took.
  int64_t Insert(const Ids& ids, std::string_view salt = "", size_t kv_pages = 99) {
    const auto pages = static_cast<int64_t>(ids.size()) / 2;
    Ids kv_ids, route_ids;
    EXPECT_TRUE(kv.Alloc(pages, kv_ids));
    EXPECT_TRUE(route.Alloc(pages, route_ids));
    std::vector<ExpertId> experts;
    for (const int32_t id : ids) experts.push_back(static_cast<ExpertId>(id % 7));
    const auto computed = std::span<const int32_t>(kv_ids).first(std::min(kv_pages, kv_ids.size()));
    const int64_t added = tree.Insert(salt, {ids, experts, computed, route_ids});
    kv.Release(kv_ids);
    route.Release(route_ids);
    return added;
  }

  PrefixMatch Match(const Ids& ids, std::string_view salt = "") {
    PrefixMatch match = tree.Match(salt, ids);
    kv.Release(match.kv_pages);
    route.Release(match.route_pages);
    return match;
  }

  void TearDown() override {
    EXPECT_THAT(tree.Violations(), IsEmpty());
    EXPECT_THAT(kv.Violations(tree.HeldKvPages()), IsEmpty());
    EXPECT_THAT(route.Violations(tree.HeldRoutePages()), IsEmpty());
    tree.Clear();
    EXPECT_EQ(tree.Nodes(), 0);
    EXPECT_THAT(tree.Violations(), IsEmpty());
    EXPECT_THAT(kv.Violations({}), IsEmpty());
    EXPECT_THAT(route.Violations({}), IsEmpty());
  }

  KvPagePool kv{32};
  KvPagePool route{32};
  PrefixTree tree{kLimits, kv, &route};
};

TEST_F(PrefixTreeTest, KnowsNothingAtFirst) {
  EXPECT_EQ(Match({1, 2, 3, 4}).planned_tokens, 0);
  EXPECT_EQ(Insert({1}), 0);  // not a whole page
  EXPECT_EQ(tree.Nodes(), 0);
}

TEST_F(PrefixTreeTest, FindsTheLongestBeginningInWholePages) {
  EXPECT_EQ(Insert({1, 2, 3, 4, 5}), 2);
  const PrefixMatch match = Match({1, 2, 3, 4, 5, 6});
  EXPECT_EQ(match.tokens, 4);
  EXPECT_EQ(match.planned_tokens, 4);
  EXPECT_THAT(match.kv_pages, ElementsAre(0, 1));
  EXPECT_THAT(match.route_pages, ElementsAre(0, 1));
  EXPECT_THAT(match.experts, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(Match({1, 2, 3, 9}).tokens, 2);
  EXPECT_EQ(Match({1, 2, 3}).tokens, 2);
  EXPECT_EQ(Match({9, 2, 3, 4}).tokens, 0);
}

TEST_F(PrefixTreeTest, MatchRetainsPages) {
  Insert({1, 2, 3, 4});
  const PrefixMatch match = tree.Match("", Ids{1, 2});
  EXPECT_EQ(kv.References(match.kv_pages[0]), 2);
  EXPECT_EQ(route.References(match.route_pages[0]), 2);
  kv.Release(match.kv_pages);
  route.Release(match.route_pages);
}

TEST_F(PrefixTreeTest, SaltsShareNothing) {
  Insert({1, 2}, "a");
  EXPECT_EQ(Match({1, 2}, "b").planned_tokens, 0);
  EXPECT_EQ(Insert({1, 2}, "b"), 1);
  EXPECT_NE(Match({1, 2}, "a").kv_pages, Match({1, 2}, "b").kv_pages);
}

TEST_F(PrefixTreeTest, TextsShareTheirBeginning) {
  EXPECT_EQ(Insert({1, 2, 3, 4}), 2);
  EXPECT_EQ(Insert({1, 2, 5, 6}), 1);
  EXPECT_EQ(tree.Nodes(), 3);
  EXPECT_EQ(kv.Free(), 32 - 3);  // the second copy of the first page went back
  EXPECT_EQ(Match({1, 2, 5, 6}).kv_pages[0], Match({1, 2, 3, 4}).kv_pages[0]);
}

TEST_F(PrefixTreeTest, EvictsKeysAndValuesFromTheLeavesAndKeepsPlans) {
  Insert({1, 2, 3, 4});
  Insert({1, 2, 5, 6});
  Match({1, 2, 3, 4});
  EXPECT_EQ(tree.EvictKv(1), 1);  // of 5 6, used longest ago
  EXPECT_EQ(Match({1, 2, 5, 6}).tokens, 2);
  EXPECT_EQ(Match({1, 2, 5, 6}).planned_tokens, 4);
  EXPECT_THAT(Match({1, 2, 5, 6}).experts, ElementsAre(1, 2, 5, 6));
  EXPECT_EQ(tree.EvictKv(9), 2);
  EXPECT_EQ(Match({1, 2, 3, 4}).tokens, 0);
  EXPECT_EQ(Match({1, 2, 3, 4}).planned_tokens, 4);
  EXPECT_EQ(kv.Free(), 32);
  EXPECT_EQ(Insert({1, 2, 3, 4}), 0);  // computed again
  EXPECT_EQ(Match({1, 2, 3, 4}).tokens, 4);
}

TEST_F(PrefixTreeTest, PagesInUseStay) {
  Insert({1, 2, 3, 4});
  Insert({5, 6});
  const PrefixMatch match = tree.Match("", Ids{1, 2, 3, 4});
  EXPECT_EQ(tree.EvictKv(9), 1);
  EXPECT_EQ(tree.EvictRoutes(9), 1);
  EXPECT_EQ(tree.Nodes(), 2);
  kv.Release(match.kv_pages);
  route.Release(match.route_pages);
  EXPECT_EQ(tree.EvictKv(9), 2);
}

TEST_F(PrefixTreeTest, EvictsWholeNodesForPagesOfTheRouter) {
  Insert({1, 2, 3, 4});
  Insert({5, 6});
  Match({1, 2});
  EXPECT_EQ(tree.EvictRoutes(1), 1);  // 3 4: the leaf used longest ago
  EXPECT_EQ(Match({1, 2, 3, 4}).planned_tokens, 2);
  EXPECT_EQ(tree.EvictRoutes(9), 2);
  EXPECT_EQ(tree.Nodes(), 0);
  EXPECT_EQ(route.Free(), 32);
}

TEST_F(PrefixTreeTest, PlansMayBeLongerThanKeysAndValues) {
  EXPECT_EQ(Insert({1, 2, 3, 4, 5, 6}, "", 1), 3);
  EXPECT_EQ(Match({1, 2, 3, 4, 5, 6}).tokens, 2);
  EXPECT_EQ(Match({1, 2, 3, 4, 5, 6}).planned_tokens, 6);
}

TEST_F(PrefixTreeTest, OldLeavesMakeRoomForNewTexts) {
  Insert({1, 2, 3, 4, 5, 6});
  Insert({7, 8, 9, 10, 11, 12, 13, 14}, "other");
  EXPECT_EQ(Insert({20, 21, 22, 23, 24, 25}), 3);
  EXPECT_EQ(tree.Nodes(), 8);
  EXPECT_EQ(Match({1, 2, 3, 4, 5, 6}).tokens, 2);
  EXPECT_EQ(Match({20, 21, 22, 23, 24, 25}).tokens, 6);
}

TEST_F(PrefixTreeTest, ATextLongerThanTheTreeIsCut) {
  Insert({50, 51});
  Ids ids;
  for (int32_t i = 0; i < 20; ++i) ids.push_back(i);
  EXPECT_EQ(Insert(ids), 8);
  EXPECT_EQ(Match(ids).tokens, 16);
  EXPECT_EQ(Match({50, 51}).tokens, 0);
}

TEST_F(PrefixTreeTest, MisuseIsACheck) {
  const Ids ids{1, 2}, pages{0};
  EXPECT_THROW(tree.Insert("", {ids, {}, pages, pages}), base::CheckError);  // no experts
  EXPECT_THROW(PrefixTree({.page_tokens = 0, .nodes_max = 1}, kv, nullptr), base::CheckError);
}

TEST(PrefixTreeDense, NodesLiveAsLongAsTheirKeysAndValues) {
  KvPagePool kv(8);
  PrefixTree tree(kLimits, kv, nullptr);
  Ids pages;
  ASSERT_TRUE(kv.Alloc(2, pages));
  const Ids ids{1, 2, 3, 4};
  EXPECT_EQ(tree.Insert("", {ids, {}, pages, {}}), 2);
  kv.Release(pages);
  PrefixMatch match = tree.Match("", ids);
  EXPECT_EQ(match.tokens, 4);
  EXPECT_EQ(match.planned_tokens, 4);
  EXPECT_THAT(match.experts, IsEmpty());
  kv.Release(match.kv_pages);
  EXPECT_EQ(tree.EvictRoutes(1), 0);
  EXPECT_EQ(tree.EvictKv(1), 1);
  EXPECT_EQ(tree.Nodes(), 1);
  EXPECT_THAT(tree.Violations(), IsEmpty());
  EXPECT_EQ(tree.EvictKv(9), 1);
  EXPECT_EQ(tree.Nodes(), 0);
  EXPECT_THAT(tree.Violations(), IsEmpty());
}

}  // namespace
}  // namespace outrider::serve
