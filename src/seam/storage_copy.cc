#include "seam/storage_copy.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

#include "seam/backend.h"
#include "seam/geometry.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"

namespace outrider::seam {
namespace {

at::Tensor Bytes(const c10::Storage& storage) {
  Geometry geometry;
  geometry.sizes = {static_cast<int64_t>(storage.nbytes())};
  geometry.strides = {1};
  geometry.dtype = c10::ScalarType::Byte;
  geometry.defined = true;
  return AliasTensor(storage, geometry);
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

}  // namespace outrider::seam
