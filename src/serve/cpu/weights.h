#pragma once
// Named tensors in memory that somebody else owns, and how they are read as fp32.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "files/safetensors.h"

namespace outrider::serve {

// Contiguous, row major. F32, BF16 or F16.
struct WeightTensor {
  files::Dtype dtype = files::Dtype::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

// Names as in Hugging Face files.
using WeightSource = std::map<std::string, WeightTensor, std::less<>>;

// A matrix of a source, row by row; a vector is a matrix of one row.
struct WeightRows {
  files::Dtype dtype = files::Dtype::kF32;
  const void* data = nullptr;
  int64_t rows = 0, columns = 0;

  // The first `count` numbers of a row.
  void Read(int64_t row, int64_t count, float* to) const;
  void Read(int64_t row, float* to) const { Read(row, columns, to); }
};

// E_TENSORS: no tensor of that name; E_SHAPE: another shape or dtype than expected.
base::Result<WeightRows> FindMatrix(const WeightSource& source, std::string_view name, int64_t rows, int64_t columns);
base::Result<std::vector<float>> FindVector(const WeightSource& source, std::string_view name, int64_t size);

}  // namespace outrider::serve
