#include "seam/geometry.h"
#include "seam/storage_copy.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "seam/backend.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/settle.h"

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

namespace {

constexpr uintptr_t kAlignment = 64;  // bytes; what torch's CPU allocator gives

at::Tensor Bytes(const c10::Storage& storage, size_t first, size_t count) {
  Geometry geometry;
  geometry.sizes = {static_cast<int64_t>(count)};
  geometry.strides = {1};
  geometry.offset = static_cast<int64_t>(first);
  geometry.dtype = c10::ScalarType::Byte;
  geometry.defined = true;
  return AliasTensor(storage, geometry);
}

at::Tensor Bytes(const c10::Storage& storage) { return Bytes(storage, 0, storage.nbytes()); }

// A storage whose first byte is aligned as `like` is.
c10::Storage StorageAlignedLike(const void* like, size_t nbytes, c10::Device device) {
  c10::Allocator* allocator = AllocatorOf(device);
  c10::DataPtr owner = allocator->allocate(nbytes + kAlignment);
  char* start = static_cast<char*>(owner.mutable_get());
  start += (reinterpret_cast<uintptr_t>(like) - reinterpret_cast<uintptr_t>(start)) % kAlignment;
  const auto deleter = owner.get_deleter();
  return c10::Storage(c10::Storage::use_byte_size_t(), nbytes, c10::DataPtr(start, owner.release_context(), deleter, device),
                      allocator, /*resizable=*/false);
}

}  // namespace

c10::Storage CopyStorage(const c10::Storage& storage) {
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  at::Tensor copy = at::empty({static_cast<int64_t>(storage.nbytes())}, at::TensorOptions().dtype(at::kByte).device(storage.device()));
  copy.copy_(Bytes(storage));
  return copy.unsafeGetTensorImpl()->unsafe_storage();
}

void OverwriteStorage(const c10::Storage& target, const c10::Storage& source) {
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Bytes(target).copy_(Bytes(source));
}

c10::Storage AliasStorage(const c10::Storage& storage) {
  c10::DataPtr pointer(const_cast<void*>(storage.data()), storage.device());
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), storage.sym_nbytes(), std::move(pointer),
                                                            AllocatorOf(storage.device()), /*resizable=*/false));
}

at::Tensor PrivateCopy(const c10::TensorImpl& tensor) {
  SettleTensor(tensor);
  const auto* record = RecordOf(tensor);
  const c10::Storage& source = record != nullptr ? record->real : tensor.unsafe_storage();
  Geometry geometry = Geometry::Of(tensor);
  const size_t first = static_cast<size_t>(geometry.offset) * tensor.itemsize();
  const size_t end = EndByte(geometry);
  const size_t count = end > first ? end - first : 0;
  const auto* address = static_cast<const char*>(source.data()) + first;
  const c10::Storage copy = StorageAlignedLike(address, count, tensor.device());
  if (count > 0) {
    LanesOff off;
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    Bytes(copy, 0, count).copy_(Bytes(source, first, count));
  }
  geometry.offset = 0;
  return AliasTensor(copy, geometry);
}

}  // namespace outrider::seam
