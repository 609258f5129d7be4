#include "kernels/cuda/tiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <tuple>
#include <vector>

namespace outrider::kernels::cuda {
namespace {

constexpr int kWidth = 256;

struct Case {
  std::vector<int> rows, columns;
};

Table TableOf(const Case& of) {
  Table table{};
  for (size_t e = 0; e < of.rows.size(); ++e) {
    table.rows_at[e + 1] = table.rows_at[e] + of.rows[e];
    table.columns[e] = of.columns[e];
  }
  return table;
}

Walk WalkOf(const Table& table, const Case& of, int rank) {
  return {&table, static_cast<int>(of.rows.size()), kWidth, rank};
}

void ExpectPartners(const Tile& a, const Tile& b) {
  ASSERT_EQ(a.expert, b.expert);
  ASSERT_EQ(a.together, b.together);
  ASSERT_FALSE(a.idle);
  if (a.together) {
    EXPECT_FALSE(b.idle);
    EXPECT_EQ(a.column, b.column);
    EXPECT_EQ(a.first_row + kTileTokens, b.first_row);
  } else {
    EXPECT_EQ(std::tuple(a.first_row, a.rows), std::tuple(b.first_row, b.rows));
    EXPECT_EQ(a.column + (b.idle ? 0 : kWidth), b.column);
  }
}

// Every number of the result belongs to exactly one tile, and both blocks of a cluster go through the same units.
void ExpectEveryTileOnce(const Case& of, int clusters) {
  const Table table = TableOf(of);
  std::map<std::tuple<int, int, int>, int> rows_of;
  for (int cluster = 0; cluster < clusters; ++cluster) {
    Walk first = WalkOf(table, of, 0), second = WalkOf(table, of, 1);
    for (int unit = cluster;; unit += clusters) {
      const Tile a = first.At(unit), b = second.At(unit);
      ASSERT_EQ(a.expert < 0, b.expert < 0);
      if (a.expert < 0) break;
      ExpectPartners(a, b);
      for (const Tile& tile : {a, b}) {
        if (tile.idle) continue;
        ASSERT_TRUE(rows_of.emplace(std::tuple(tile.expert, tile.first_row, tile.column), tile.rows).second);
      }
    }
  }
  size_t wanted = 0;
  for (size_t e = 0; e < of.rows.size(); ++e) {
    for (int row = 0; row < of.rows[e]; row += kTileTokens) {
      for (int column = 0; column < of.columns[e]; ++column, ++wanted) {
        const auto found = rows_of.find({static_cast<int>(e), table.rows_at[e] + row, column * kWidth});
        ASSERT_NE(found, rows_of.end()) << "expert " << e << " row " << row << " column " << column;
        EXPECT_EQ(found->second, std::min(kTileTokens, of.rows[e] - row));
      }
    }
  }
  EXPECT_EQ(rows_of.size(), wanted);
}

TEST(Tiles, EveryTileIsWalkedOnce) {
  for (const int clusters : {1, 3, 66}) {
    ExpectEveryTileOnce({{500, 0, 129, 1, 640}, {43, 43, 43, 2, 43}}, clusters);
    ExpectEveryTileOnce({{57}, {1}}, clusters);
    ExpectEveryTileOnce({{128, 256}, {0, 5}}, clusters);
  }
}

TEST(Tiles, EveryTileIsWalkedOnceForRandomExperts) {
  std::mt19937 random(7);
  const auto draw = [&random](int below) { return static_cast<int>(random() % static_cast<unsigned>(below)); };
  for (int i = 0; i < 200; ++i) {
    Case of{std::vector<int>(1 + static_cast<size_t>(draw(kTableExperts))), {}};
    for (int& rows : of.rows) {
      rows = draw(3) == 0 ? 0 : draw(900);
      of.columns.push_back(draw(20));
    }
    ExpectEveryTileOnce(of, 1 + draw(70));
  }
}

TEST(Tiles, NothingToWalk) {
  const Case of{{0, 0}, {5, 5}};
  const Table table = TableOf(of);
  EXPECT_LT(WalkOf(table, of, 0).At(0).expert, 0);
}

}  // namespace
}  // namespace outrider::kernels::cuda
