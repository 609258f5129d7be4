#pragma once
// Bytes of one storage in another, on the stream of the calling thread.

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <vector>

#include "seam/storage_record.h"

namespace outrider::seam {

// A copy of all bytes of a storage, in a storage of its own.
c10::Storage CopyStorage(const c10::Storage& storage);
// Copies of all bytes of each storage, taken by one operator per device: devices are slow to start many small copies.
std::vector<at::Tensor> CopyBytes(const std::vector<c10::Storage>& storages);
// Overwrites the bytes of `target`; both have the same size.
void OverwriteStorage(const c10::Storage& target, const c10::Storage& source);
void OverwriteStorage(const c10::Storage& target, const at::Tensor& bytes);
// The same bytes without ownership.
c10::Storage AliasStorage(const c10::Storage& storage);

// What the tensor holds now, in a storage of its own, for memory that the program may overwrite at any time: the bytes
// from its first to its last element, gaps included, with the same strides and offset 0. The copy has the alignment of
// the original too: kernels choose their order of summation by strides and alignment, so that any other layout could
// change bits. Imperative thread.
at::Tensor PrivateCopy(const c10::TensorImpl& tensor);

}  // namespace outrider::seam
