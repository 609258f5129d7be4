#pragma once
// Copies of memory that the program may overwrite at any time.

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>

namespace outrider::seam {

// What the tensor holds now, in a storage of its own: the bytes from its first to its last element, gaps included, with
// the same strides and offset 0. The copy has the alignment of the original too: kernels choose their order of summation
// by strides and alignment, so that any other layout could change bits. Imperative thread.
at::Tensor PrivateCopy(const c10::TensorImpl& tensor);

}  // namespace outrider::seam
