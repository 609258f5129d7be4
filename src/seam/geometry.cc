#include "seam/geometry.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

namespace outrider::seam {
namespace {

c10::DispatchKeySet DenseKey(c10::Device device) {
  return c10::DispatchKeySet(device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU);
}

// Keys that give a dense tensor another meaning.
constexpr c10::DispatchKeySet kSpecialKeys =
    c10::DispatchKeySet({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative, c10::DispatchKey::ZeroTensor, c10::DispatchKey::Python,
                         c10::DispatchKey::PythonTLSSnapshot, c10::DispatchKey::Functionalize, c10::DispatchKey::NestedTensor,
                         c10::DispatchKey::FuncTorchBatched});

}  // namespace

Geometry Geometry::Of(const c10::TensorImpl& tensor) {
  Geometry geometry;
  geometry.sizes.assign(tensor.sizes().begin(), tensor.sizes().end());
  geometry.strides.assign(tensor.strides().begin(), tensor.strides().end());
  geometry.offset = tensor.storage_offset();
  geometry.dtype = tensor.dtype().toScalarType();
  geometry.wrapped_number = tensor.is_wrapped_number();
  geometry.defined = true;
  return geometry;
}

bool Geometry::Matches(const c10::TensorImpl& tensor) const {
  return defined && tensor.sizes() == c10::IntArrayRef(sizes) && tensor.strides() == c10::IntArrayRef(strides) &&
         tensor.storage_offset() == offset && tensor.dtype().toScalarType() == dtype && tensor.is_wrapped_number() == wrapped_number;
}

std::string Geometry::Text() const {
  if (!defined) return "undefined";
  std::string text = c10::toString(dtype);
  text += "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i == 0 ? "" : ",") + std::to_string(sizes[i]);
  return text + "]";
}

uint64_t HashGeometry(uint64_t seed, const c10::TensorImpl& tensor) {
  for (int64_t size : tensor.sizes()) seed = HashMix(seed, static_cast<uint64_t>(size));
  for (int64_t stride : tensor.strides()) seed = HashMix(seed, static_cast<uint64_t>(stride) * 3);
  seed = HashMix(seed, static_cast<uint64_t>(tensor.storage_offset()));
  return HashMix(seed, static_cast<uint64_t>(tensor.dtype().toScalarType()) * 2 + (tensor.is_wrapped_number() ? 1 : 0));
}

uint64_t HashLayout(uint64_t seed, const c10::TensorImpl& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    int64_t packed = 1;
    uint64_t faster = 0;
    for (size_t j = 0; j < sizes.size(); ++j) {
      if (strides[j] > strides[i] || (strides[j] == strides[i] && j <= i)) continue;
      ++faster;
      packed *= std::max<int64_t>(sizes[j], 1);
    }
    const auto extent = static_cast<uint64_t>(std::min<int64_t>(sizes[i], 2));
    seed = HashMix(seed, faster * 16 + extent * 4 + (strides[i] == packed ? 2 : 0) + (strides[i] == 0 ? 1 : 0));
  }
  return HashMix(seed, static_cast<uint64_t>(tensor.dtype().toScalarType()) * 2 + (tensor.is_wrapped_number() ? 1 : 0));
}

size_t EndByte(const Geometry& geometry) {
  int64_t last = geometry.offset;
  for (size_t i = 0; i < geometry.sizes.size(); ++i) {
    if (geometry.sizes[i] == 0) return 0;
    last += (geometry.sizes[i] - 1) * geometry.strides[i];
  }
  return static_cast<size_t>(last + 1) * c10::elementSize(geometry.dtype);
}

at::Tensor AliasTensor(const c10::Storage& storage, const Geometry& geometry) {
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), DenseKey(storage.device()),
                                                   c10::scalarTypeToTypeMeta(geometry.dtype));
  impl->set_sizes_and_strides(geometry.sizes, geometry.strides, geometry.offset);
  if (geometry.wrapped_number) impl->set_wrapped_number(true);
  return at::Tensor(std::move(impl));
}

at::Tensor AliasTensor(const c10::Storage& storage, const c10::TensorImpl& like) {
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), DenseKey(storage.device()), like.dtype());
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return at::Tensor(std::move(impl));
}

bool IsPlainStrided(const c10::TensorImpl& tensor) {
  const auto keys = tensor.key_set();
  if (tensor.layout() != c10::kStrided || keys.has_any(kSpecialKeys)) return false;
  return keys.has(c10::DispatchKey::CPU) || keys.has(c10::DispatchKey::CUDA);
}

}  // namespace outrider::seam
