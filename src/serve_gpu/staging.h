#pragma once
// What the host copies to the device before a pass: numbers in one piece of memory, int32 each, by place.

#include <cstdint>
#include <span>
#include <vector>

#include "serve/cpu/pass_input.h"

namespace outrider::serve_gpu {

constexpr int64_t kRowsMax = 32;     // tokens of one graph
constexpr int64_t kChunkMax = 512;   // tokens of prompts that run together
constexpr int64_t kChunkTexts = 32;  // texts that they belong to, at most
constexpr int64_t kTileRows = 64;    // tokens of one text that attend together
constexpr int64_t kTilesMax = kChunkMax / kTileRows + kChunkTexts;
constexpr int64_t kTileNumbers = 4;  // of a tile: its first row, its rows, its text, nothing

// Tokens of a pass that run together.
struct Group {
  int64_t first = 0, count = 0;
};

// Places of a group of up to kRowsMax tokens; experts are bytes, four to a number.
struct RowPlaces {
  explicit RowPlaces(int64_t pages) : table(pages) {}
  int64_t table;  // pages of the longest text
  static constexpr int64_t ids = 0, positions = kRowsMax, experts = 2 * kRowsMax, pages = experts + kRowsMax / 4;
  int64_t size() const { return pages + kRowsMax * table; }
};

// Likewise of a chunk of prompts.
struct ChunkPlaces {
  explicit ChunkPlaces(int64_t pages) : table(pages) {}
  int64_t table;
  static constexpr int64_t ids = 0, positions = kChunkMax, texts = 2 * kChunkMax, wanted = 3 * kChunkMax,
                           experts = 4 * kChunkMax, tiles = experts + kChunkMax / 4,
                           pages = tiles + kTileNumbers * kTilesMax;
  int64_t size() const { return pages + kChunkTexts * table; }
};

// Tokens [first, first + kRowsMax) of the input. Padding has the expert of the first row, so it reads no channel of its
// own, and writes to the page behind all others, `scratch_page`.
Group StageRows(const serve::PassInput& input, int64_t first, int32_t scratch_page, const RowPlaces& places,
                int32_t* to);

struct Chunk {
  Group tokens;
  int64_t tiles = 0;
  std::span<const int64_t> wanted;  // of the input, ascending
};

// Tokens from `first`, as many as fit; rows behind them have the token and position 0 and belong to nobody.
Chunk StageChunk(const serve::PassInput& input, int64_t first, const ChunkPlaces& places, int32_t* to);

// The wanted tokens of a group.
std::span<const int64_t> WantedOf(const serve::PassInput& input, const Group& group);

// A pass in two: what belongs to prompts, and what was written. Each wanted token knows its row of the output.
struct SplitPass {
  serve::PassInput whole, prompt, written;
  std::vector<int64_t> prompt_rows, written_rows;

  // Codes: those of PassInput::Take; E_SHAPE more tokens of a prompt than a run has.
  base::Result<void> Take(std::span<const serve::TokenRun> runs, const serve::ModelShape& shape);
};

}  // namespace outrider::serve_gpu
