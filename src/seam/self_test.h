#pragma once
// Known programs, run once at load to see how this torch behaves.

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <vector>

namespace outrider::seam {

// One forward and backward pass with a value that gets several gradients. Learns the call sites inside the autograd engine
// that ask for a storage without reading it. The inner lane must be active on this thread.
void LearnEngineCallSites();

// A plain tensor that has been grafted: every raw access to it passes the gate.
at::Tensor GraftedProbe();

// Where backward would start for each tensor. All must require grad.
torch::autograd::edge_list GradientEdges(const std::vector<at::Tensor>& tensors);

}  // namespace outrider::seam
