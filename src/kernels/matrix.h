#pragma once
// A weight matrix as panels of kPanelRows rows, so that one walk through memory serves all rows of a panel at once and
// a vector of sums belongs to as many rows. Columns are padded to whole blocks and rows to whole panels, with zeros.
//
//   kF32    panel = [column][row] fp32
//   kBf16   panel = [column / 2][row][column % 2] bf16
//   kI8     panel = [column / 32] of { scale [row] fp16, [column % 32 / 2][row][column % 2] bytes }

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "kernels/number.h"
#include "kernels/scratch.h"

namespace outrider::kernels {

constexpr int64_t kPanelRows = 32;

class Matrix {
 public:
  // Writes one row, `columns` numbers.
  using ReadRow = std::function<void(int64_t row, float* to)>;

  Matrix() = default;
  // `bias`: one per row, or empty. Throws std::bad_alloc.
  static Matrix Pack(int64_t rows, int64_t columns, Number number, const ReadRow& read, std::span<const float> bias);

  // As the kernels see it; kI8: scale * whole number.
  void Row(int64_t row, float* to) const;

  Number number() const { return number_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t padded_columns() const { return (columns_ + kBlock - 1) / kBlock * kBlock; }
  int64_t panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }
  int64_t panel_bytes() const;
  int64_t row_bytes() const { return panel_bytes() / kPanelRows; }
  // What one use of the matrix reads, padding and bias included.
  int64_t bytes() const { return panels() * panel_bytes() + (bias_.size() > 0 ? rows_ * 4 : 0); }
  const std::byte* data() const { return data_.data(); }
  // Padded to whole panels; null without one.
  const float* bias() const { return reinterpret_cast<const float*>(bias_.data()); }

 private:
  void PackRow(int64_t row, const float* values);

  Number number_ = Number::kF32;
  int64_t rows_ = 0, columns_ = 0;
  AlignedBytes data_, bias_;
};

}  // namespace outrider::kernels
