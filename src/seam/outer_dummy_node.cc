#include "seam/outer_dummy_node.h"

#include <c10/core/GradMode.h>
#include <c10/util/ScopeExit.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>

#include "seam/lazy_impl.h"
#include "seam/outer_lane.h"

namespace outrider::seam {
namespace {

using torch::autograd::Edge;
using torch::autograd::edge_list;
using torch::autograd::InputMetadata;
using torch::autograd::variable_list;

// The engine runs ready nodes of high sequence number first: what is handed on arrives in the order of eager.
constexpr uint64_t kRunsAtOnce = UINT64_MAX;
// Longer than any path through real nodes. The engine leaves out nodes too shallow to reach what it is asked for.
constexpr uint64_t kDeepest = uint64_t{1} << 40;

InputMetadata MetadataOf(const OuterValue& value) {
  auto bare = c10::make_intrusive<LazyImpl>(
      c10::TensorImpl::VIEW, c10::Storage(c10::Storage::use_byte_size_t(), 0, c10::DataPtr(), nullptr, false),
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
  std::construct_at(&input_metadata_[value], MetadataOf(plan.values[value]));
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

}  // namespace outrider::seam
