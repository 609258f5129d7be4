#pragma once
// Where the elements of a tensor lie in its storage, without the storage.

#include <c10/core/TensorImpl.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <string>

namespace outrider::seam {

struct Geometry {
  c10::SmallVector<int64_t, 5> sizes;    // elements
  c10::SmallVector<int64_t, 5> strides;  // elements
  int64_t offset = 0;                    // elements
  c10::ScalarType dtype = c10::ScalarType::Float;
  bool wrapped_number = false;  // a Python number that was wrapped: takes part in type promotion differently
  bool defined = false;

  static Geometry Of(const c10::TensorImpl& tensor);
  bool Matches(const c10::TensorImpl& tensor) const;
  friend bool operator==(const Geometry&, const Geometry&) = default;
  std::string Text() const;  // "Float[2,3]"
};

uint64_t HashGeometry(uint64_t seed, const c10::TensorImpl& tensor);
// The part of a geometry that decides how kernels lay out their results: dtype, order of the strides, unit and empty
// dimensions, packed or not. Magnitudes take no part.
uint64_t HashLayout(uint64_t seed, const c10::TensorImpl& tensor);
// One past the last byte of the storage that the geometry reaches; 0 for no elements.
size_t EndByte(const Geometry& geometry);

inline uint64_t HashMix(uint64_t seed, uint64_t value) {
  seed ^= value + 0x9e3779b97f4a7c15ULL + (seed << 12) + (seed >> 4);
  return seed * 0xff51afd7ed558ccdULL;
}

// A tensor without PyObject, autograd history or version ties over `storage`. `device_key` is Dense CPU or CUDA.
at::Tensor AliasTensor(const c10::Storage& storage, const Geometry& geometry);
// The same for the bytes of an existing tensor.
at::Tensor AliasTensor(const c10::Storage& storage, const c10::TensorImpl& like);

// Only plain strided tensors of these key sets take part; everything else runs inline.
bool IsPlainStrided(const c10::TensorImpl& tensor);

}  // namespace outrider::seam
