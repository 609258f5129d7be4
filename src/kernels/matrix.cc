#include "kernels/matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/bf16.h"
#include "kernels/int8_block.h"

namespace outrider::kernels {
namespace {

constexpr int64_t kBlockScales = kPanelRows * kScaleBytes;
constexpr int64_t kBlockBytes = kBlockScales + kPanelRows * kBlock;

// Byte of a number inside a block of a kI8 panel.
int64_t PlaceInBlock(int64_t lane, int64_t column) {
  return kBlockScales + (column / 2 * kPanelRows + lane) * 2 + column % 2;
}

}  // namespace

int64_t Matrix::panel_bytes() const {
  if (number_ == Number::kI8) return padded_columns() / kBlock * kBlockBytes;
  return padded_columns() * kPanelRows * BytesOf(number_);
}

Matrix Matrix::Pack(int64_t rows, int64_t columns, Number number, const ReadRow& read, std::span<const float> bias) {
  OUTRIDER_CHECK(rows > 0 && columns > 0, rows, " rows of ", columns);
  OUTRIDER_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == rows, bias.size(), " numbers of bias");
  Matrix matrix;
  matrix.number_ = number;
  matrix.rows_ = rows;
  matrix.columns_ = columns;
  matrix.data_.Resize(matrix.panels() * matrix.panel_bytes());
  std::vector<float> row(static_cast<size_t>(matrix.padded_columns()), 0.0F);
  for (int64_t r = 0; r < rows; ++r) {
    read(r, row.data());
    matrix.PackRow(r, row.data());
  }
  std::ranges::fill(row, 0.0F);
  for (int64_t r = rows; r < matrix.panels() * kPanelRows; ++r) matrix.PackRow(r, row.data());
  if (bias.empty()) return matrix;
  const int64_t padded = matrix.panels() * kPanelRows;
  matrix.bias_.Resize(padded * 4);
  auto* to = reinterpret_cast<float*>(matrix.bias_.data());
  std::fill(std::ranges::copy(bias, to).out, to + padded, 0.0F);
  return matrix;
}

void Matrix::PackRow(int64_t row, const float* values) {
  std::byte* panel = data_.data() + row / kPanelRows * panel_bytes();
  const int64_t lane = row % kPanelRows, columns = padded_columns();
  if (number_ == Number::kF32) {
    for (int64_t k = 0; k < columns; ++k) reinterpret_cast<float*>(panel)[k * kPanelRows + lane] = values[k];
    return;
  }
  if (number_ == Number::kBf16) {
    auto* to = reinterpret_cast<uint16_t*>(panel);
    for (int64_t k = 0; k < columns; ++k) to[(k / 2 * kPanelRows + lane) * 2 + k % 2] = Bf16Of(values[k]);
    return;
  }
  for (int64_t b = 0; b < columns / kBlock; ++b) {
    std::byte* block = panel + b * kBlockBytes;
    const uint16_t scale = ScaleOf(values + b * kBlock);
    std::memcpy(block + lane * kScaleBytes, &scale, kScaleBytes);
    for (int64_t k = 0; k < kBlock; ++k)
      block[PlaceInBlock(lane, k)] = static_cast<std::byte>(WholeOf(values[b * kBlock + k], FloatOfHalf(scale)));
  }
}

void Matrix::Row(int64_t row, float* to) const {
  const std::byte* panel = data_.data() + row / kPanelRows * panel_bytes();
  const int64_t lane = row % kPanelRows;
  if (number_ == Number::kF32) {
    for (int64_t k = 0; k < columns_; ++k) to[k] = reinterpret_cast<const float*>(panel)[k * kPanelRows + lane];
    return;
  }
  if (number_ == Number::kBf16) {
    const auto* from = reinterpret_cast<const uint16_t*>(panel);
    for (int64_t k = 0; k < columns_; ++k) to[k] = FloatOf(from[(k / 2 * kPanelRows + lane) * 2 + k % 2]);
    return;
  }
  for (int64_t first = 0; first < columns_; first += kBlock, panel += kBlockBytes) {
    uint16_t half = 0;
    std::memcpy(&half, panel + lane * kScaleBytes, kScaleBytes);
    const float scale = FloatOfHalf(half);
    for (int64_t k = 0; k < std::min(kBlock, columns_ - first); ++k)
      to[first + k] = static_cast<float>(static_cast<int8_t>(panel[PlaceInBlock(lane, k)])) * scale;
  }
}

}  // namespace outrider::kernels
