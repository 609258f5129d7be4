#include "model/text_rows.h"

#include <algorithm>
#include <array>
#include <utility>

#include <xxhash.h>

#include "base/check.h"

namespace outrider::model {
namespace {

// A float32 of 24 bits: below 1 after rounding.
float Uniform(uint64_t seed, int64_t text, size_t place) {
  const std::array<uint64_t, 2> key = {static_cast<uint64_t>(text), place};
  return static_cast<float>(XXH3_64bits_withSeed(key.data(), sizeof(key), seed) >> 40) * 0x1p-24F;
}

bool Contains(const std::vector<int64_t>& ids, int64_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

TextRows::TextRows(TextPlan plan, int64_t rows, int64_t window) : plan_(std::move(plan)), window_(window) {
  OUTRIDER_CHECK(rows > 0 && window > 0 && !plan_.turns.empty() && !plan_.prompts.empty(), "nothing to write");
  for (const auto& prompt : plan_.prompts) {
    OUTRIDER_CHECK(!prompt.empty() && static_cast<int64_t>(prompt.size()) < plan_.length, "a prompt of ", prompt.size(),
                   " tokens in texts of ", plan_.length);
  }
  // Each turn may end at the start of a window, whose other steps are then wasted.
  const int64_t wasted = static_cast<int64_t>(plan_.turns.size()) * (window - 1);
  slots_ = (plan_.length + wasted + 15) / 16 * 16;
  rows_.resize(static_cast<size_t>(std::min(rows, std::max<int64_t>(plan_.texts, 1))));
  for (Row& row : rows_) Start(row);
}

bool TextRows::Idle() const {
  return std::ranges::none_of(rows_, [](const Row& row) { return row.text.has_value(); });
}

void TextRows::Start(Row& row) {
  row = {.text = std::nullopt, .queue = {}, .consumed = 0, .seen = std::vector<uint8_t>(static_cast<size_t>(slots_))};
  if (started_ == plan_.texts) return;
  const auto& prompt = plan_.prompts[static_cast<size_t>(started_) % plan_.prompts.size()];
  row.text = SampledText{.number = started_++, .turns = 0, .ids = {prompt.front()}};
  row.queue.assign(prompt.rbegin(), prompt.rend() - 1);
}

TextRows::Inputs TextRows::Next() {
  const auto count = rows_.size();
  const auto steps = static_cast<size_t>(window_);
  Inputs out{.ids = std::vector<int64_t>(count),
             .positions = std::vector<int64_t>(count),
             .seen = {},
             .forced = std::vector<int64_t>(steps * count, -1),
             .uniform = std::vector<float>(steps * count),
             .temperatures = std::vector<float>(count),
             .first_slot = step_ % slots_,
             .used_slots = std::min(step_ + window_, slots_)};
  for (size_t b = 0; b < count; ++b) {
    Row& row = rows_[b];
    // What these steps overwrite is too old to belong to this text.
    for (int64_t w = 0; w < window_; ++w) row.seen[static_cast<size_t>((step_ + w) % slots_)] = 0;
    out.seen.insert(out.seen.end(), row.seen.begin(), row.seen.end());
    if (!row.text) continue;
    const std::vector<int64_t>& ids = row.text->ids;
    out.ids[b] = ids.back();
    out.positions[b] = row.consumed;
    out.temperatures[b] = static_cast<float>(plan_.turns[static_cast<size_t>(row.text->turns)].temperature);
    for (size_t w = 0; w < steps; ++w) {
      if (w < row.queue.size()) out.forced[w * count + b] = row.queue[row.queue.size() - 1 - w];
      out.uniform[w * count + b] = Uniform(plan_.seed, row.text->number, ids.size() + w);
    }
  }
  return out;
}

bool TextRows::Add(Row& row, int64_t id) {
  SampledText& text = *row.text;
  text.ids.push_back(id);
  if (!row.queue.empty()) {
    row.queue.pop_back();
  } else if (const Turn& turn = plan_.turns[static_cast<size_t>(text.turns)]; Contains(turn.end_ids, id)) {
    row.queue.assign(turn.tail.rbegin(), turn.tail.rend());
    if (++text.turns == static_cast<int64_t>(plan_.turns.size())) return true;
  }
  return static_cast<int64_t>(text.ids.size()) >= plan_.length;
}

std::vector<SampledText> TextRows::Take(std::span<const int64_t> made) {
  OUTRIDER_CHECK(made.size() == static_cast<size_t>(window_) * rows_.size(), "another number of ids than of steps");
  std::vector<SampledText> over;
  for (size_t b = 0; b < rows_.size(); ++b) {
    Row& row = rows_[b];
    if (!row.text) continue;
    bool done = false;
    for (int64_t w = 0; w < window_ && !done; ++w) {
      row.seen[static_cast<size_t>((step_ + w) % slots_)] = 1;
      ++row.consumed;
      const int64_t turns = row.text->turns;
      done = Add(row, made[static_cast<size_t>(w) * rows_.size() + b]);
      if (row.text->turns != turns) break;  // what was made behind the end of a turn does not know the tail
    }
    if (!done) continue;
    over.push_back(std::move(*row.text));
    Start(row);
  }
  step_ += window_;
  return over;
}

}  // namespace outrider::model
