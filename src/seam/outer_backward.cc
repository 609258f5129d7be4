// OuterLane: backward as one event: whether it may be one, and the dummy node below it.

#include "seam/eligibility.h"

#include <c10/core/GradMode.h>
#include <c10/util/ScopeExit.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <typeinfo>
#include <unordered_set>

#include "seam/gil.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/outer_lane.h"
#include "seam/outer_placeholder.h"
#include "seam/settle.h"
#include "seam/torch_adapter.h"

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

using torch::autograd::Edge;
using torch::autograd::edge_list;
using torch::autograd::InputMetadata;
using torch::autograd::variable_list;

namespace {

// The engine runs ready nodes of high sequence number first: what is handed on arrives in the order of eager.
constexpr uint64_t kRunsAtOnce = UINT64_MAX;
// Longer than any path through real nodes. The engine leaves out nodes too shallow to reach what it is asked for.
constexpr uint64_t kDeepest = uint64_t{1} << 40;

InputMetadata MetadataOf(const OuterPlan& plan, int id) {
  const OuterValue& value = plan.values[id];
  c10::DataPtr nothing(nullptr, plan.slots[value.slot].device);
  auto bare = c10::make_intrusive<LazyImpl>(
      c10::TensorImpl::VIEW, c10::Storage(c10::Storage::use_byte_size_t(), 0, std::move(nothing), nullptr, false),
      value.keys, c10::scalarTypeToTypeMeta(value.geometry.dtype));
  bare->set_sizes_and_strides(value.geometry.sizes, value.geometry.strides, 0);
  return InputMetadata(at::Tensor(std::move(bare)));
}

}  // namespace

DummyNode::DummyNode(OuterLane& lane, std::weak_ptr<OuterStep> step)
    : Node(kRunsAtOnce), lane_(lane), step_(std::move(step)) {
  topological_nr_ = kDeepest;
}

void DummyNode::Cover(const OuterPlan& plan) {
  input_metadata_.reserve(plan.values_with_history);
  while (num_inputs() < plan.values_with_history) add_input_metadata(undefined_input());
  for (int value : plan.root_values) Describe(value, plan);
}

// The engine checks gradients against this. Metadata has no assignment.
void DummyNode::Describe(int value, const OuterPlan& plan) {
  std::destroy_at(&input_metadata_[value]);
  std::construct_at(&input_metadata_[value], MetadataOf(plan, value));
}

void DummyNode::HandOn(const OuterPlan& plan, edge_list real) {
  for (size_t value = 0; value < real.size(); ++value) {
    if (real[value].is_valid()) Describe(static_cast<int>(value), plan);
  }
  handed_on_ = true;
  real_ = std::move(real);
  if (!applying_) next_edges_ = real_;  // the engine has not counted edges that appear while it runs this node
}

Edge DummyNode::Resolve(const Edge& edge) {
  const auto* dummy = dynamic_cast<const DummyNode*>(edge.function.get());
  if (dummy == nullptr || edge.input_nr >= dummy->real_.size()) return edge;
  const Edge& real = dummy->real_[edge.input_nr];
  return real.is_valid() ? real : edge;
}

bool DummyNode::Hooked() {
  return !pre_hooks_.empty() || !post_hooks_.empty() || !tensor_pre_hooks_.empty() || !retains_grad_hooks_.empty();
}

variable_list DummyNode::apply(variable_list&& gradients) {
  if (handed_on_) {
    for (size_t i = 0; i < gradients.size(); ++i) {
      TORCH_CHECK(!gradients[i].defined() || real_[i].is_valid(), torch::autograd::ERR_BACKWARD_TWICE);
    }
    return std::move(gradients);
  }
  const auto step = step_.lock();
  TORCH_CHECK(step != nullptr && !step->over && !used_, torch::autograd::ERR_BACKWARD_TWICE);
  const bool plain = !torch::autograd::get_current_graph_task_keep_graph() && !c10::GradMode::is_enabled();
  applying_ = true;
  const auto done = c10::make_scope_exit([this] { applying_ = false; });
  if (lane_.BackwardFromNode(step.get(), gradients, plain)) used_ = true;
  return {};
}

bool OuterLane::LeavesMatch(const OuterEvent& event) const {
  for (size_t i = 0; i < event.leaves.size(); ++i) {
    const External& external = step_->plan->externals[event.leaves[i]];
    const at::Tensor leaf(external.tensor.lock());
    if (!leaf.defined() || !leaf.requires_grad() || !LeafObstacle(leaf).empty()) return false;
    const at::Tensor& gradient = leaf.grad();
    const Arg& before = event.leaf_grads[i];
    if (!gradient.defined()) {
      if (before.code != Arg::Code::kUndefined) return false;
    } else if (!const_cast<OuterLane*>(this)->MatchTensor(before, gradient)) {
      return false;
    }
  }
  return true;
}

bool OuterLane::CoverBackward(const std::vector<int>& root_values, const std::vector<at::Tensor>& gradients) {
  const auto lock = LockLaunch();
  if (diverge_requested_ || step_->cursor == force_at_) return false;
  newly_bound_.clear();
  const auto fits = [&](const OuterPlan& plan) {
    if (plan.events.size() <= static_cast<size_t>(step_->cursor)) return false;
    const OuterEvent& event = plan.events[step_->cursor];
    if (!event.backward || event.args.size() != root_values.size() + gradients.size()) return false;
    for (size_t i = 0; i < root_values.size(); ++i) {
      if (event.args[i].id != root_values[i]) return false;
    }
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!MatchTensor(event.args[root_values.size() + i], gradients[i])) return false;
    }
    return LeavesMatch(event);
  };
  if (!fits(*step_->plan) && !SwitchPlan(fits)) {
    Unbind(0);
    return false;
  }
  const OuterEvent& event = step_->plan->events[step_->cursor];
  LogEntry entry;
  entry.event = step_->cursor;
  for (int value : root_values) {
    auto* root = step_->live[value];
    entry.args.emplace_back(at::Tensor(c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>::reclaim_copy(root)));
  }
  for (const auto& gradient : gradients) entry.args.emplace_back(gradient);
  BindOperands(event, entry);
  entry.gradients.resize(event.leaves.size());
  entry.gradients_before.resize(event.leaves.size());
  for (size_t i = 0; i < event.leaves.size(); ++i) {
    const at::Tensor leaf(step_->plan->externals[event.leaves[i]].tensor.lock());
    entry.gradients_before[i] = leaf.grad();
    if (event.leaf_values[i] >= 0) leaf.mutable_grad() = entry.gradients[i] = MakePlaceholder(event.leaf_values[i], nullptr);
    for (uint32_t k = 0; k < event.leaf_bumps[i]; ++k) leaf.grad().unsafeGetTensorImpl()->bump_version();
  }
  step_->log.push_back(std::move(entry));
  ++step_->cursor;
  ++stats_.events;
  edges_in_hand_ = root_values.size();  // the caller's; their nodes are consumed
  const auto done = c10::make_scope_exit([this] { edges_in_hand_ = 0; });
  if (options_.cut_at_backward && CommitAllowed()) Launch(/*final=*/false);
  return true;
}

std::optional<std::vector<int>> OuterLane::ValuesOf(const edge_list& edges) const {
  std::vector<int> values;
  for (const auto& edge : edges) {
    const bool living = edge.function.get() == dummy_.get() && step_->live[edge.input_nr] != nullptr;
    if (!living) return std::nullopt;
    values.push_back(static_cast<int>(edge.input_nr));
  }
  return values;
}

BackwardAnswer OuterLane::BackwardEnter(const edge_list& roots, const std::vector<at::Tensor>& gradients, bool plain) {
  if (mode_ == Mode::kRecord) {
    if (recorder_->InEvent()) {
      recorder_->Refuse("INNER_GRAPH_API: backward inside a backward (re-entrant checkpointing)");
      return BackwardAnswer::kPlain;
    }
    if (!plain) {
      recorder_->Refuse("INNER_GRAPH_API: autograd.grad, inputs=, create_graph or retain_graph");
      return BackwardAnswer::kPlain;
    }
    recorder_->BeginBackward(roots, gradients);
    return BackwardAnswer::kFollow;
  }
  if (mode_ != Mode::kCover) return BackwardAnswer::kPlain;
  TORCH_CHECK(!dummy_->Hooked(), "outrider: a hook was put on ", dummy_->name(), ", which stands for all nodes of a covered ",
              "step; put the hook on the tensor, or choose the inner lane");
  const auto values = ValuesOf(roots);
  if (plain && values && CoverBackward(*values, gradients)) return BackwardAnswer::kHandled;
  const bool forced = step_->cursor == force_at_;
  Diverge(forced ? DivergenceReason::kForced : DivergenceReason::kBackward, "the recorded backward", "another backward",
          plain ? "roots, gradients or leaves" : "engine flags");
  return BackwardAnswer::kPlain;
}

void OuterLane::BackwardExit(bool completed) {
  if (mode_ == Mode::kRecord && recorder_ != nullptr) recorder_->EndBackward(completed);
}

bool OuterLane::BackwardFromNode(OuterStep* step, const std::vector<at::Tensor>& gradients, bool plain) {
  std::unique_lock<std::recursive_mutex> lock(launch_mutex_);  // the engine may be called by any thread
  TORCH_CHECK(step == step_.get() && mode_ == Mode::kCover, torch::autograd::ERR_BACKWARD_TWICE);
  edge_list roots;
  std::vector<at::Tensor> given;
  for (size_t value = 0; value < gradients.size(); ++value) {
    if (!gradients[value].defined()) continue;
    roots.emplace_back(dummy_, static_cast<uint32_t>(value));
    given.push_back(gradients[value]);
  }
  const auto values = ValuesOf(roots);
  if (plain && values && CoverBackward(*values, given)) return true;
  // Build the real graph here and run the real backward inside this one.
  Diverge(DivergenceReason::kBackward, "the recorded backward", "another backward", "seen by the engine");
  lock.unlock();
  for (auto& root : roots) root = DummyNode::Resolve(root);
  const bool keep_graph = torch::autograd::get_current_graph_task_keep_graph();
  RunBackward(roots, given, keep_graph, /*create_graph=*/c10::GradMode::is_enabled());
  return false;
}

}  // namespace outrider::seam
