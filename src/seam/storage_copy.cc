#include "seam/storage_copy.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/empty.h>

#include "seam/backend.h"
#include "seam/geometry.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/settle.h"

namespace outrider::seam {
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

std::vector<at::Tensor> CopyBytes(const std::vector<c10::Storage>& storages) {
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  std::vector<at::Tensor> copies(storages.size());
  for (size_t first = 0; first < storages.size(); ++first) {
    if (copies[first].defined()) continue;
    const c10::Device device = storages[first].device();
    size_t total = 0;
    std::vector<std::pair<size_t, size_t>> places;  // storage, where its copy begins
    for (size_t i = first; i < storages.size(); ++i) {
      if (storages[i].device() != device) continue;
      places.emplace_back(i, total);
      total += (storages[i].nbytes() + kAlignment - 1) / kAlignment * kAlignment;
    }
    const at::Tensor all = at::empty({static_cast<int64_t>(total)}, at::TensorOptions().dtype(at::kByte).device(device));
    std::vector<at::Tensor> targets, sources;
    for (const auto& [i, place] : places) {
      copies[i] = Bytes(all.unsafeGetTensorImpl()->unsafe_storage(), place, storages[i].nbytes());
      targets.push_back(copies[i]);
      sources.push_back(Bytes(storages[i]));
    }
    at::_foreach_copy_(targets, sources);
  }
  return copies;
}

void OverwriteStorage(const c10::Storage& target, const at::Tensor& bytes) {
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Bytes(target).copy_(bytes);
}

void OverwriteStorage(const c10::Storage& target, const c10::Storage& source) { OverwriteStorage(target, Bytes(source)); }

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
