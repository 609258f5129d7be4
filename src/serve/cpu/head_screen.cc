#include "serve/cpu/head_screen.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"
#include "kernels/linear.h"
#include "sampling/lanes.h"

namespace outrider::serve {
namespace {

using kernels::Matrix;
using kernels::Number;
using sampling::Floats;

using Panel = std::pair<int64_t, int64_t>;  // as in ScreenMemory

constexpr size_t kRows = 512;       // of a block whose bounds are kept
constexpr int64_t kManyPanels = 4;  // one in so many is as dear as all of them at once
// Of |x| that rounding to blocks of 16-bit numbers loses at most: half a step of 1/32767 of a block's largest number,
// sqrt(32) numbers long, is 8.7e-5.
constexpr double kInputLoss = 1e-4;
constexpr double kLongestRow = 1e15, kLongestInput = 1e20, kShortestInput = 1e-20;
constexpr float kNone = -std::numeric_limits<float>::infinity();

// Of |w| |x| that fp32 rounds away at most, in a logit and in its estimate: a unit for each product and each sum, and a
// few for what is done with them here.
double RoundingOf(int64_t columns) { return (2.5 * static_cast<double>(columns) + 32) * 0x1p-24; }

// Of a whole number of blocks.
double Norm(std::span<const float> x) {
  double squares[4] = {};  // one sum alone would wait for itself
  for (size_t i = 0; i < x.size(); i += 4)
    for (size_t j = 0; j < 4; ++j) squares[j] += static_cast<double>(x[i + j]) * x[i + j];
  return std::sqrt((squares[0] + squares[1]) + (squares[2] + squares[3]));
}

float NotBelow(double value) {
  const auto near = static_cast<float>(value);
  return near < value ? std::nextafter(near, std::numeric_limits<float>::infinity()) : near;
}

}  // namespace

HeadScreen HeadScreen::Of(const Matrix& head) {
  if (head.number() == Number::kI8 || head.bias() != nullptr || head.columns() != head.padded_columns()) return {};
  HeadScreen screen;
  const auto read = [&](int64_t row, float* to) { head.Row(row, to); };
  screen.copy_ = Matrix::Pack(head.rows(), head.columns(), Number::kI8, read, {});
  const auto columns = static_cast<size_t>(head.columns());
  std::vector<float> whole(columns), lost(columns);
  for (int64_t r = 0; r < head.rows(); ++r) {
    head.Row(r, lost.data());
    const double own = Norm(lost);
    screen.copy_.Row(r, whole.data());
    for (size_t i = 0; i < columns; ++i) lost[i] -= whole[i];  // exact but for half a unit of what is left
    const double loss = Norm(lost) * (1 + 1e-6), norm = std::max(own, Norm(whole));
    if (!(norm <= kLongestRow)) return {};
    screen.reach_.push_back(NotBelow(loss + (kInputLoss + RoundingOf(head.columns())) * norm));
  }
  return screen;
}

std::optional<int64_t> HeadScreen::Likeliest(const Matrix& head, const float* x, std::span<int64_t> best,
                                             ScreenMemory& memory, kernels::Workers& workers) const {
  OUTRIDER_CHECK(on() && head.rows() == copy_.rows() && head.columns() == copy_.columns(), "another head");
  memory.rows.resize(best.size());
  if (!TakeNorms(x, memory)) return std::nullopt;
  const int64_t tokens = std::ssize(best), rows = head.rows();
  memory.logits.resize(std::max(memory.logits.size(), static_cast<size_t>(tokens * rows)));
  float* logits = memory.logits.data();
  kernels::Linear(copy_, {x, tokens, logits, rows}, memory.scratch, workers);
  workers.Run(tokens, [&](int64_t t, int) { FindBounds(logits + t * rows, memory.rows[static_cast<size_t>(t)]); });

  std::vector<Panel>& panels = memory.panels;
  panels.clear();
  for (int64_t t = 0; t < tokens; ++t) {
    ScreenMemory::Row& row = memory.rows[static_cast<size_t>(t)];
    FindCandidates(logits + t * rows, row);
    if (row.ids.size() == 1) continue;
    for (const int32_t id : row.ids) {
      const Panel panel{t, id / kernels::kPanelRows};
      if (panels.empty() || panels.back() != panel) panels.push_back(panel);
    }
  }
  const int64_t read = ComputeDoubtful(head, x, memory, workers);
  for (int64_t t = 0; t < tokens; ++t) {
    const auto logit = [&](int32_t id) { return logits[t * rows + id]; };
    best[static_cast<size_t>(t)] = *std::ranges::max_element(memory.rows[static_cast<size_t>(t)].ids, {}, logit);
  }
  return read;
}

// Logits of memory.panels in place of their estimates. Many of them are computed with all others, which reads each
// panel once for all tokens. Returns the bytes read.
int64_t HeadScreen::ComputeDoubtful(const Matrix& head, const float* x, ScreenMemory& memory,
                                    kernels::Workers& workers) const {
  std::vector<Panel>& panels = memory.panels;
  float* logits = memory.logits.data();
  const int64_t columns = head.columns(), rows = head.rows(), count = std::ssize(panels);
  if (count > head.panels() / kManyPanels + 1) {
    kernels::Linear(head, {x, std::ssize(memory.rows), logits, rows}, memory.scratch, workers);
    return head.bytes();
  }
  workers.Run(count, [&](int64_t i, int) {
    const auto [t, panel] = panels[static_cast<size_t>(i)];
    kernels::LinearPanel(head, {x + t * columns, 1, logits + t * rows, rows}, panel);
  });
  std::ranges::sort(panels, {}, &Panel::second);
  const auto again = std::ranges::unique(panels, {}, &Panel::second);
  return (count - std::ssize(again)) * head.panel_bytes();
}

bool HeadScreen::TakeNorms(const float* x, ScreenMemory& memory) const {
  const auto columns = static_cast<size_t>(copy_.columns());
  for (ScreenMemory::Row& row : memory.rows) {
    const double norm = Norm({x, columns});
    if (!(norm >= kShortestInput && norm <= kLongestInput)) return false;
    row.norm = NotBelow(norm);
    row.highest.resize((reach_.size() + kRows - 1) / kRows);
    x += columns;
  }
  return true;
}

void HeadScreen::FindBounds(const float* estimates, ScreenMemory::Row& row) const {
  const size_t rows = reach_.size();
  row.least = kNone;
  for (size_t at = 0; at < rows; at += kRows) {
    const size_t end = std::min(at + kRows, rows);
    Floats lowest = sampling::Every(kNone), highest = lowest;
    size_t i = at;
    for (; i + sampling::kLanes <= end; i += sampling::kLanes) {
      const Floats estimate = sampling::Load(estimates + i), off = sampling::Load(&reach_[i]) * row.norm;
      lowest = sampling::Larger(estimate - off, lowest);
      highest = sampling::Larger(estimate + off, highest);
    }
    float low = sampling::LargestOf(lowest), high = sampling::LargestOf(highest);
    for (; i < end; ++i) {
      low = std::max(low, estimates[i] - reach_[i] * row.norm);
      high = std::max(high, estimates[i] + reach_[i] * row.norm);
    }
    row.least = std::max(row.least, low);
    row.highest[at / kRows] = high;
  }
}

// Rows whose estimate, with all that it may be off, reaches what the largest logit is at least.
void HeadScreen::FindCandidates(const float* estimates, ScreenMemory::Row& row) const {
  const size_t rows = reach_.size();
  row.ids.clear();
  for (size_t at = 0; at < rows; at += kRows) {
    if (row.highest[at / kRows] < row.least) continue;
    for (size_t i = at; i < std::min(at + kRows, rows); ++i)
      if (estimates[i] + reach_[i] * row.norm >= row.least) row.ids.push_back(static_cast<int32_t>(i));
  }
}

}  // namespace outrider::serve
