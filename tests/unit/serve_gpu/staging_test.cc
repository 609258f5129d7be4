#include "serve_gpu/staging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace outrider::serve_gpu {
namespace {

using serve::TokenRun;
using testing::ElementsAre;

constexpr int64_t kTable = 40;

serve::ModelShape Shape() {
  serve::ModelShape shape;
  shape.vocab = 1'000;
  shape.context = kTable * 16;
  shape.experts = 4;
  shape.kv_pages = 900;
  shape.step_tokens_max = 2'000;
  return shape;
}

// Texts whose ids are number * 100 + place, with pages from number * 40 on.
struct Texts {
  std::vector<std::vector<int32_t>> ids, pages;
  std::vector<std::vector<uint8_t>> experts;
  std::vector<TokenRun> runs;

  void Add(int64_t tokens, int64_t position, int64_t prompt, int64_t logits_from) {
    const auto number = static_cast<int32_t>(ids.size());
    auto& id = ids.emplace_back(static_cast<size_t>(tokens));
    for (size_t i = 0; i < id.size(); ++i) id[i] = (number * 100 + static_cast<int32_t>(i)) % 1'000;
    auto& page = pages.emplace_back(static_cast<size_t>(kTable));
    std::iota(page.begin(), page.end(), number % 20 * 40);
    auto& expert = experts.emplace_back(static_cast<size_t>(tokens), static_cast<uint8_t>(number % 4));
    runs.push_back({id, expert, position, page, logits_from, prompt});
  }
};

SplitPass Taken(const Texts& texts) {
  SplitPass pass;
  const auto taken = pass.Take(texts.runs, Shape());
  EXPECT_TRUE(taken) << taken.error().message;
  return pass;
}

std::vector<int32_t> TileAt(const std::vector<int32_t>& staged, int64_t tile) {
  const auto at = staged.begin() + ChunkPlaces::tiles + kTileNumbers * tile;
  return {at, at + kTileNumbers};
}

TEST(SplitPass, EachTokenGoesItsWayAndKeepsItsRow) {
  Texts texts;
  texts.Add(5, 16, 3, 2);  // the last of its prompt and what was written
  texts.Add(1, 7, 0, 0);   // one written token
  texts.Add(4, 0, 4, 3);   // a whole prompt
  const SplitPass pass = Taken(texts);
  EXPECT_THAT(pass.prompt.tokens.ids, ElementsAre(0, 1, 2, 200, 201, 202, 203));
  EXPECT_THAT(pass.prompt.tokens.positions, ElementsAre(16, 17, 18, 0, 1, 2, 3));
  EXPECT_THAT(pass.written.tokens.ids, ElementsAre(3, 4, 100));
  EXPECT_THAT(pass.written.tokens.positions, ElementsAre(19, 20, 7));
  EXPECT_THAT(pass.written.experts, ElementsAre(0, 0, 1));
  EXPECT_THAT(pass.prompt.wanted, ElementsAre(2, 6));
  EXPECT_THAT(pass.written.wanted, ElementsAre(0, 1, 2));
  EXPECT_THAT(pass.prompt_rows, ElementsAre(0, 4));
  EXPECT_THAT(pass.written_rows, ElementsAre(1, 2, 3));
}

TEST(SplitPass, APromptLongerThanItsRunIsRefused) {
  Texts texts;
  texts.Add(5, 0, 6, 0);
  SplitPass pass;
  const auto taken = pass.Take(texts.runs, Shape());
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().message, "run 0: prompt: found 6, expected 0 to 5");
}

TEST(StageChunk, TextsAreCutIntoTilesOfTheirOwn) {
  Texts texts;
  texts.Add(70, 10, 70, 69);
  texts.Add(3, 0, 3, 0);
  texts.Add(64, 0, 64, 64);
  const SplitPass pass = Taken(texts);
  const ChunkPlaces places(kTable);
  std::vector<int32_t> staged(static_cast<size_t>(places.size()), -1);
  const Chunk chunk = StageChunk(pass.prompt, 0, places, staged.data());
  EXPECT_EQ(chunk.tokens.count, 137);
  EXPECT_EQ(chunk.tiles, 4);
  EXPECT_THAT(TileAt(staged, 0), ElementsAre(0, 64, 0, 0));
  EXPECT_THAT(TileAt(staged, 1), ElementsAre(64, 6, 0, 0));
  EXPECT_THAT(TileAt(staged, 2), ElementsAre(70, 3, 1, 0));
  EXPECT_THAT(TileAt(staged, 3), ElementsAre(73, 64, 2, 0));
  EXPECT_THAT(chunk.wanted, ElementsAre(69, 70, 71, 72));
  EXPECT_EQ(staged[ChunkPlaces::wanted + 1], 70);
  EXPECT_EQ(staged[ChunkPlaces::positions + 69], 79);
  EXPECT_EQ(staged[ChunkPlaces::texts + 71], 1);
  EXPECT_EQ(staged[ChunkPlaces::pages + 4], 4) << "the page of position 79";
  EXPECT_EQ(staged[ChunkPlaces::pages + kTable], 40);
  EXPECT_EQ(reinterpret_cast<const uint8_t*>(staged.data() + ChunkPlaces::experts)[136], 2);
  EXPECT_EQ(staged[ChunkPlaces::ids + 137], 0) << "padding";
}

TEST(StageChunk, AChunkEndsWithItsTokensOrItsTexts) {
  Texts long_texts, many;
  long_texts.Add(600, 0, 600, 599);
  for (int i = 0; i < 40; ++i) many.Add(2, 5, 2, 1);
  const ChunkPlaces places(kTable);
  std::vector<int32_t> staged(static_cast<size_t>(places.size()));
  const SplitPass one = Taken(long_texts), forty = Taken(many);
  const Chunk first = StageChunk(one.prompt, 0, places, staged.data());
  EXPECT_EQ(first.tokens.count, kChunkMax);
  EXPECT_TRUE(first.wanted.empty());
  const Chunk rest = StageChunk(one.prompt, kChunkMax, places, staged.data());
  EXPECT_EQ(rest.tokens.count, 600 - kChunkMax);
  EXPECT_EQ(staged[ChunkPlaces::positions], 512);
  EXPECT_EQ(staged[ChunkPlaces::wanted], 600 - kChunkMax - 1);
  const Chunk texts = StageChunk(forty.prompt, 0, places, staged.data());
  EXPECT_EQ(texts.tokens.count, 2 * kChunkTexts);
  EXPECT_EQ(texts.tiles, kChunkTexts);
  EXPECT_EQ(StageChunk(forty.prompt, 2 * kChunkTexts, places, staged.data()).tokens.count, 16);
}

TEST(StageRows, PaddingTakesTheFirstExpertAndAPageOfItsOwn) {
  Texts texts;
  texts.Add(3, 20, 0, 0);
  texts.Add(2, 3, 0, 2);
  const SplitPass pass = Taken(texts);
  const RowPlaces places(kTable);
  std::vector<int32_t> staged(static_cast<size_t>(places.size()), -1);
  const Group group = StageRows(pass.written, 1, 900, places, staged.data());
  EXPECT_EQ(group.count, 4);
  EXPECT_THAT(WantedOf(pass.written, group), ElementsAre(1, 2));
  const auto* experts = reinterpret_cast<const uint8_t*>(staged.data() + RowPlaces::experts);
  EXPECT_THAT(std::vector(experts, experts + 6), ElementsAre(0, 0, 1, 1, 0, 0));
  EXPECT_EQ(staged[RowPlaces::positions], 21);
  EXPECT_EQ(staged[RowPlaces::pages + 1], 1);
  EXPECT_EQ(staged[RowPlaces::pages + 2], 900);
  EXPECT_EQ(staged[RowPlaces::pages + 2 * kTable], 40);
  EXPECT_EQ(staged[RowPlaces::pages + 4 * kTable], 900);
}

}  // namespace
}  // namespace outrider::serve_gpu
