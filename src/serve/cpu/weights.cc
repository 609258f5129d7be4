#include "serve/cpu/weights.h"

#include <bit>
#include <cstring>

namespace outrider::serve {
namespace {

using files::Dtype;

float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

float FromF16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000U) << 16, exponent = bits >> 10 & 0x1fU, fraction = bits & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | fraction << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = static_cast<float>(fraction) * 0x1p-24F;
  return sign != 0 ? -small : small;
}

std::string Text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

base::Result<WeightRows> Find(const WeightSource& source, std::string_view name, std::vector<int64_t> shape) {
  const auto found = source.find(name);
  if (found == source.end())
    return base::Fail("E_TENSORS", std::string(name) + ": found none, expected a tensor of shape " + Text(shape));
  const WeightTensor& tensor = found->second;
  const bool known = tensor.dtype == Dtype::kF32 || tensor.dtype == Dtype::kBF16 || tensor.dtype == Dtype::kF16;
  if (tensor.shape != shape || !known || tensor.data == nullptr)
    return base::Fail("E_SHAPE", std::string(name) + ": found " + std::string(files::NameOf(tensor.dtype)) + " " +
                                     Text(tensor.shape) + ", expected F32, BF16 or F16 " + Text(shape));
  return WeightRows{tensor.dtype, tensor.data, shape.size() == 1 ? 1 : shape.front(), shape.back()};
}

}  // namespace

void WeightRows::Read(int64_t row, int64_t count, float* to) const {
  if (dtype == Dtype::kF32) {
    std::memcpy(to, static_cast<const float*>(data) + row * columns, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const auto* from = static_cast<const uint16_t*>(data) + row * columns;
  for (int64_t i = 0; i < count; ++i) to[i] = dtype == Dtype::kBF16 ? FromBf16(from[i]) : FromF16(from[i]);
}

base::Result<WeightRows> FindMatrix(const WeightSource& source, std::string_view name, int64_t rows, int64_t columns) {
  return Find(source, name, {rows, columns});
}

base::Result<std::vector<float>> FindVector(const WeightSource& source, std::string_view name, int64_t size) {
  const auto rows = Find(source, name, {size});
  if (!rows) return tl::unexpected(rows.error());
  std::vector<float> values(static_cast<size_t>(size));
  rows->Read(0, values.data());
  return values;
}

}  // namespace outrider::serve
