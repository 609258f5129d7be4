#pragma once
// The default CPU generator's state as an opaque tensor.

#include <ATen/core/Tensor.h>

namespace outrider::seam {

at::Tensor CpuGeneratorState();
void SetCpuGeneratorState(const at::Tensor& state);

}  // namespace outrider::seam
