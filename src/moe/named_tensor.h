#pragma once
// A tensor and the name under which files, logs and messages know it.

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace outrider::moe {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

using NamedTensors = std::vector<NamedTensor>;

}  // namespace outrider::moe
