#include "seam/eligibility.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <typeinfo>
#include <unordered_set>

#include "seam/outer_placeholder.h"

namespace outrider::seam {
namespace {

using torch::autograd::Node;

// Node classes that torch generates for its own operators, and the few it writes by hand. Python functions (PyNode), C++
// custom functions (CppNode) and everything unknown are not among them.
bool IsKnownNode(const Node& node) {
  const std::string type = typeid(node).name();
  if (type.find("PyNode") != std::string::npos || type.find("CppNode") != std::string::npos) return false;
  return type.find("torch8autograd") != std::string::npos;
}

std::string NodeObstacle(Node& node) {
  if (!node.pre_hooks().empty() || !node.post_hooks().empty()) return "INNER_HOOK: hook on " + node.name();
  if (!node.tensor_pre_hooks().empty()) return "INNER_HOOK: tensor hook before " + node.name();
  if (!node.retains_grad_hooks().empty()) return "INNER_HOOK: retain_grad before " + node.name();
  if (!IsKnownNode(node)) return "INNER_PYNODE: custom autograd function " + node.name();
  return "";
}

}  // namespace

std::string LeafObstacle(const at::Tensor& leaf) {
  if (!torch::autograd::impl::hooks(leaf).empty()) return "INNER_HOOK: tensor hook on a leaf";
  if (torch::autograd::impl::post_acc_grad_hooks(leaf) != nullptr) return "INNER_HOOK: post-accumulate hook on a leaf";
  // The node lives only while a graph or somebody with a hook holds it.
  const auto accumulator = torch::autograd::impl::try_get_grad_accumulator(leaf);
  if (accumulator && !(accumulator->pre_hooks().empty() && accumulator->post_hooks().empty())) {
    return "INNER_HOOK: hook on the node that accumulates a leaf's gradient";
  }
  return "";
}

GraphFacts InspectGraph(const torch::autograd::edge_list& roots) {
  GraphFacts facts;
  std::unordered_set<const Node*> seen;
  std::vector<Node*> stack;
  auto visit = [&](Node* node) {
    if (node != nullptr && seen.insert(node).second) stack.push_back(node);
  };
  for (const auto& root : roots) visit(root.function.get());
  while (!stack.empty()) {
    Node* node = stack.back();
    stack.pop_back();
    facts.nodes.push_back(node);
    std::string obstacle = NodeObstacle(*node);
    if (auto* accumulate = dynamic_cast<torch::autograd::AccumulateGrad*>(node)) {
      facts.leaves.push_back(accumulate->variable);
      if (obstacle.empty()) obstacle = LeafObstacle(accumulate->variable);
    }
    if (facts.refusal.empty()) facts.refusal = obstacle;
    for (const auto& edge : node->next_edges()) visit(edge.function.get());
  }
  return facts;
}

torch::autograd::edge_list GradientEdges(const std::vector<at::Tensor>& tensors) {
  torch::autograd::edge_list edges;
  for (const auto& tensor : tensors) {
    // Asking a view for its history may bring that up to date, which a covered step has no means to do.
    const auto* meta = torch::autograd::impl::get_autograd_meta(tensor);
    const bool as_it_is = meta != nullptr && meta->grad_fn_ && IsCovered(*tensor.unsafeGetTensorImpl());
    edges.push_back(as_it_is ? torch::autograd::Edge(meta->grad_fn_, meta->output_nr_) : torch::autograd::impl::gradient_edge(tensor));
  }
  return edges;
}

}  // namespace outrider::seam
