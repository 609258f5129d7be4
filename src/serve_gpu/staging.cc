#include "serve_gpu/staging.h"

#include <algorithm>
#include <string>

#include "kernels/engine.h"

namespace outrider::serve_gpu {

using kernels::kPageTokens;
using serve::PassInput;
using serve::PassTokens;
using serve::TokenRun;

namespace {

void CopyPages(const PassTokens& tokens, size_t token, int32_t* to) {
  std::copy_n(tokens.pages[token], tokens.positions[token] / kPageTokens + 1, to);
}

// Writes tokens of one text and their tiles, from row `row` on.
void StageText(const PassInput& input, const Group& text, int64_t row, int64_t number, const ChunkPlaces& places,
               int64_t& tiles, int32_t* to) {
  auto* experts = reinterpret_cast<uint8_t*>(to + ChunkPlaces::experts);
  for (int64_t i = 0; i < text.count; ++i) {
    const auto token = static_cast<size_t>(text.first + i);
    to[ChunkPlaces::ids + row + i] = input.tokens.ids[token];
    to[ChunkPlaces::positions + row + i] = static_cast<int32_t>(input.tokens.positions[token]);
    to[ChunkPlaces::texts + row + i] = static_cast<int32_t>(number);
    experts[row + i] = input.experts[token];
  }
  CopyPages(input.tokens, static_cast<size_t>(text.first + text.count - 1),
            to + ChunkPlaces::pages + number * places.table);
  for (int64_t at = 0; at < text.count; at += kTileRows) {
    int32_t* tile = to + ChunkPlaces::tiles + kTileNumbers * tiles++;
    tile[0] = static_cast<int32_t>(row + at);
    tile[1] = static_cast<int32_t>(std::min(kTileRows, text.count - at));
    tile[2] = static_cast<int32_t>(number);
    tile[3] = 0;
  }
}

}  // namespace

std::span<const int64_t> WantedOf(const PassInput& input, const Group& group) {
  const auto begin = std::ranges::lower_bound(input.wanted, group.first);
  return {begin, std::lower_bound(begin, input.wanted.end(), group.first + group.count)};
}

Group StageRows(const PassInput& input, int64_t first, int32_t scratch_page, const RowPlaces& places, int32_t* to) {
  const Group group{.first = first, .count = std::min(kRowsMax, input.tokens.count() - first)};
  auto* experts = reinterpret_cast<uint8_t*>(to + RowPlaces::experts);
  std::fill_n(to, RowPlaces::experts, 0);
  std::fill_n(experts, kRowsMax, group.count > 0 ? input.experts[static_cast<size_t>(first)] : uint8_t{0});
  std::fill_n(to + RowPlaces::pages, kRowsMax * places.table, scratch_page);
  for (int64_t row = 0; row < group.count; ++row) {
    const auto token = static_cast<size_t>(first + row);
    to[RowPlaces::ids + row] = input.tokens.ids[token];
    to[RowPlaces::positions + row] = static_cast<int32_t>(input.tokens.positions[token]);
    experts[row] = input.experts[token];
    CopyPages(input.tokens, token, to + RowPlaces::pages + row * places.table);
  }
  return group;
}

Chunk StageChunk(const PassInput& input, int64_t first, const ChunkPlaces& places, int32_t* to) {
  std::fill_n(to, places.size(), 0);
  const int64_t end = std::min(input.tokens.count(), first + kChunkMax);
  Chunk chunk;
  int64_t at = first;
  for (int64_t text = 0; text < kChunkTexts && at < end; ++text) {
    int64_t next = at + 1;
    while (next < end && input.tokens.GoesOn(next)) ++next;
    StageText(input, {at, next - at}, at - first, text, places, chunk.tiles, to);
    at = next;
  }
  chunk.tokens = {first, at - first};
  chunk.wanted = WantedOf(input, chunk.tokens);
  for (size_t i = 0; i < chunk.wanted.size(); ++i)
    to[ChunkPlaces::wanted + static_cast<int64_t>(i)] = static_cast<int32_t>(chunk.wanted[i] - first);
  return chunk;
}

base::Result<void> SplitPass::Take(std::span<const TokenRun> runs, const serve::ModelShape& shape) {
  if (auto taken = whole.Take(runs, shape); !taken) return taken;
  prompt = {};
  written = {};
  prompt_rows.clear();
  written_rows.clear();
  size_t token = 0, next_wanted = 0;
  for (size_t r = 0; r < runs.size(); ++r) {
    const auto count = static_cast<int64_t>(runs[r].ids.size());
    if (runs[r].prompt < 0 || runs[r].prompt > count)
      return base::Fail("E_SHAPE", "run " + std::to_string(r) + ": prompt: found " + std::to_string(runs[r].prompt) +
                                       ", expected 0 to " + std::to_string(count));
    for (int64_t i = 0; i < count; ++i, ++token) {
      const bool before = i < runs[r].prompt;
      PassInput& to = before ? prompt : written;
      if (next_wanted < whole.wanted.size() && whole.wanted[next_wanted] == static_cast<int64_t>(token)) {
        to.wanted.push_back(to.tokens.count());
        (before ? prompt_rows : written_rows).push_back(static_cast<int64_t>(next_wanted++));
      }
      to.tokens.ids.push_back(whole.tokens.ids[token]);
      to.tokens.positions.push_back(whole.tokens.positions[token]);
      to.tokens.pages.push_back(whole.tokens.pages[token]);
      to.experts.push_back(whole.experts[token]);
    }
  }
  return {};
}

}  // namespace outrider::serve_gpu
