#pragma once
// Whether a backward pass may be one event: decided from the autograd graph that eager built, by an allow-list.

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <string>
#include <vector>

namespace outrider::seam {

struct GraphFacts {
  std::vector<const torch::autograd::Node*> nodes;
  std::vector<at::Tensor> leaves;  // that accumulate a gradient, in the order they are met
  std::string refusal;             // first reason against, empty if none
};

GraphFacts InspectGraph(const torch::autograd::edge_list& roots);

// Empty, or why this leaf's gradient may not be handled as one event.
std::string LeafObstacle(const at::Tensor& leaf);

// Where backward would start for each tensor. All must require grad.
torch::autograd::edge_list GradientEdges(const std::vector<at::Tensor>& tensors);

}  // namespace outrider::seam
