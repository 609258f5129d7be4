#include "model/text_rows.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <utility>
#include <vector>

namespace outrider::model {
namespace {

constexpr int64_t kEnd = 9, kTail = 7;

TextPlan Plan() {
  return {.prompts = {{1, 2, 3}, {4, 5}},
          .turns = {{.end_ids = {kEnd}, .tail = {kTail, kTail + 1}}, {.end_ids = {kEnd, 8}, .tail = {}}},
          .length = 20,
          .texts = 7,
          .seed = 3};
}

// A model that knows only where it is: what follows place p of a text is p % 10, so a turn ends at every tenth place.
// Checks that the row sees exactly its own consumed tokens, each in one slot.
class FakeModel {
 public:
  explicit FakeModel(TextRows& rows) : rows_(rows), cache_(static_cast<size_t>(rows.rows())) {
    for (auto& row : cache_) row.assign(static_cast<size_t>(rows.slots()), {-1, -1});
  }
  std::vector<SampledText> Advance() {
    TextRows::Inputs in = rows_.Next();
    const auto count = static_cast<size_t>(rows_.rows());
    std::vector<int64_t> made;
    for (int64_t w = 0; w < rows_.window(); ++w) {
      const auto slot = static_cast<size_t>((in.first_slot + w) % rows_.slots());
      EXPECT_LT(static_cast<int64_t>(slot), in.used_slots);
      for (size_t b = 0; b < count; ++b) {
        cache_[b][slot] = {in.positions[b], in.ids[b]};
        in.seen[b * static_cast<size_t>(rows_.slots()) + slot] = 1;
        Check(in, b);
        const int64_t forced = in.forced[static_cast<size_t>(w) * count + b];
        made.push_back(forced >= 0 ? forced : ++in.positions[b] % 10);
        if (forced >= 0) ++in.positions[b];
        in.ids[b] = made.back();
        uniforms.insert(in.uniform[static_cast<size_t>(w) * count + b]);
      }
    }
    return rows_.Take(made);
  }
  std::multiset<float> uniforms;

 private:
  void Check(const TextRows::Inputs& in, size_t b) {
    std::set<int64_t> positions;
    for (size_t s = 0; s < cache_[b].size(); ++s) {
      if (in.seen[b * cache_[b].size() + s] == 0) continue;
      EXPECT_TRUE(positions.insert(cache_[b][s].first).second) << "a position in two slots";
    }
    ASSERT_FALSE(positions.empty());
    EXPECT_EQ(*positions.begin(), 0);
    EXPECT_EQ(*positions.rbegin(), static_cast<int64_t>(positions.size()) - 1) << "a hole";
    EXPECT_EQ(*positions.rbegin(), in.positions[b]);
  }

  TextRows& rows_;
  std::vector<std::vector<std::pair<int64_t, int64_t>>> cache_;  // [row][slot]: position, id
};

std::map<int64_t, SampledText> AllOf(TextPlan plan, int64_t rows, int64_t window) {
  TextRows table(std::move(plan), rows, window);
  FakeModel model(table);
  std::map<int64_t, SampledText> texts;
  for (int step = 0; !table.Idle() && step < 1000; ++step) {
    for (const SampledText& text : model.Advance()) EXPECT_TRUE(texts.emplace(text.number, text).second);
  }
  return texts;
}

TEST(TextRows, PromptsTurnsAndTailsMakeAText) {
  const auto texts = AllOf(Plan(), 1, 1);
  ASSERT_EQ(texts.size(), 7U);
  EXPECT_EQ(texts.at(0).ids, (std::vector<int64_t>{1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 7, 8, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(texts.at(0).turns, 2);
  EXPECT_EQ(texts.at(1).ids.size(), 19U);
  EXPECT_EQ(texts.at(1).ids[0], 4) << "prompts take turns";
}

TEST(TextRows, NeitherRowsNorWindowChangeATextWhoseModelLooksAtItAlone) {
  const auto expected = AllOf(Plan(), 1, 1);
  for (const int64_t rows : {2, 3, 7, 50}) {
    for (const int64_t window : {1, 2, 5, 16}) {
      const auto found = AllOf(Plan(), rows, window);
      ASSERT_EQ(found.size(), expected.size());
      for (const auto& [number, text] : expected) {
        EXPECT_EQ(found.at(number).ids, text.ids) << rows << " rows, window " << window << ", text " << number;
        EXPECT_EQ(found.at(number).turns, text.turns);
      }
    }
  }
}

TEST(TextRows, ATextEndsAtItsLength) {
  TextPlan plan = Plan();
  plan.length = 6;
  for (const auto& [number, text] : AllOf(plan, 2, 3)) {
    EXPECT_EQ(text.ids.size(), 6U);
    EXPECT_EQ(text.turns, 0);
  }
}

TEST(TextRows, ManyMoreTextsThanSlotsHold) {
  TextPlan plan = Plan();
  plan.texts = 200;
  EXPECT_EQ(AllOf(plan, 3, 4).size(), 200U);
}

TEST(TextRows, DrawsDependOnSeedTextAndPlaceAlone) {
  const auto draws = [](uint64_t seed, int64_t rows) {
    TextPlan plan = Plan();
    plan.seed = seed;
    TextRows table(plan, rows, 1);
    FakeModel model(table);
    while (!table.Idle()) model.Advance();
    model.uniforms.erase(0.0F);  // of idle rows
    return model.uniforms;
  };
  EXPECT_EQ(draws(1, 1), draws(1, 3));
  EXPECT_NE(draws(1, 1), draws(2, 1));
  EXPECT_GE(*draws(1, 1).begin(), 0.0F);
  EXPECT_LT(*draws(1, 1).rbegin(), 1.0F);
}

}  // namespace
}  // namespace outrider::model
