// OuterLane: backward as one event.

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include "seam/eligibility.h"
#include "seam/gil.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/outer_lane.h"
#include "seam/settle.h"
#include "seam/torch_adapter.h"

namespace outrider::seam {
namespace {

using torch::autograd::Node;
using torch::autograd::variable_list;

// Stands for the whole graph of a covered step. Input k < R is the k-th recorded backward root, input R everything else.
class DummyNode final : public Node {
 public:
  DummyNode(OuterLane& lane, std::weak_ptr<OuterStep> step) : lane_(lane), step_(std::move(step)) {}

  variable_list apply(variable_list&& gradients) override {
    const auto step = step_.lock();
    TORCH_CHECK(step != nullptr && !step->over && !used_, torch::autograd::ERR_BACKWARD_TWICE);
    const bool plain = !torch::autograd::get_current_graph_task_keep_graph() && !c10::GradMode::is_enabled();
    if (lane_.BackwardFromNode(step.get(), gradients, plain)) used_ = true;
    return {};
  }
  std::string name() const override { return "OutriderStepBackward"; }
  void release_variables() override { used_ = true; }

 private:
  OuterLane& lane_;
  std::weak_ptr<OuterStep> step_;
  bool used_ = false;
};

}  // namespace

void OuterLane::MakeDummyNode() {
  auto node = MakeNode<DummyNode>(*this, std::weak_ptr<OuterStep>(step_));
  const OuterPlan& plan = *step_->plan;
  for (int root = 0; root < plan.roots; ++root) {
    for (const auto& value : plan.values) {
      if (value.root != root) continue;
      c10::DataPtr nothing(nullptr, plan.slots[value.slot].device);
      auto meta = c10::make_intrusive<LazyImpl>(c10::TensorImpl::VIEW, c10::Storage(c10::Storage::use_byte_size_t(), 0, std::move(nothing), nullptr, false),
                                                value.keys, c10::scalarTypeToTypeMeta(value.geometry.dtype));
      meta->set_sizes_and_strides(value.geometry.sizes, value.geometry.strides, 0);
      node->add_input_metadata(at::Tensor(std::move(meta)));
    }
  }
  node->add_input_metadata(Node::undefined_input());
  dummy_ = torch::autograd::Edge(std::move(node), 0);
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
  TakeSnapshots(event, entry);
  entry.gradients.resize(event.leaves.size());
  for (size_t i = 0; i < event.leaves.size(); ++i) {
    const at::Tensor leaf(step_->plan->externals[event.leaves[i]].tensor.lock());
    if (event.leaf_values[i] >= 0) leaf.mutable_grad() = entry.gradients[i] = MakePlaceholder(event.leaf_values[i], nullptr);
    for (uint32_t k = 0; k < event.leaf_bumps[i]; ++k) leaf.grad().unsafeGetTensorImpl()->bump_version();
  }
  step_->log.push_back(std::move(entry));
  ++step_->cursor;
  ++stats_.events;
  SetUncommittedWork(true);
  if (options_.cut_at_backward && CommitAllowed()) Launch(/*final=*/false);
  return true;
}

OuterLane::Backward OuterLane::BackwardEnter(const torch::autograd::edge_list& roots, const std::vector<at::Tensor>& gradients, bool plain) {
  if (mode_ == Mode::kRecord) {
    if (recorder_->InEvent()) {
      recorder_->Refuse("INNER_GRAPH_API: backward inside a backward (re-entrant checkpointing)");
      return Backward::kPlain;
    }
    if (!plain) {
      recorder_->Refuse("INNER_GRAPH_API: autograd.grad, inputs=, create_graph or retain_graph");
      return Backward::kPlain;
    }
    recorder_->BeginBackward(roots, gradients);
    return Backward::kFollow;
  }
  if (mode_ != Mode::kCover) return Backward::kPlain;
  std::vector<int> values;
  for (const auto& root : roots) {
    if (root.function != dummy_.function) break;
    for (size_t i = 0; i < step_->plan->values.size(); ++i) {
      if (step_->plan->values[i].root == static_cast<int>(root.input_nr)) values.push_back(static_cast<int>(i));
    }
  }
  if (plain && values.size() == roots.size() && CoverBackward(values, gradients)) return Backward::kHandled;
  const bool forced = step_->cursor == force_at_;
  Diverge(forced ? DivergenceReason::kForced : DivergenceReason::kBackward, "the recorded backward", "another backward",
          plain ? "roots, gradients or leaves" : "engine flags");
  return Backward::kPlain;
}

void OuterLane::BackwardExit() {
  if (mode_ == Mode::kRecord && recorder_ != nullptr) recorder_->EndBackward();
}

bool OuterLane::BackwardFromNode(OuterStep* step, const std::vector<at::Tensor>& gradients, bool plain) {
  TORCH_CHECK(step == step_.get() && mode_ == Mode::kCover, torch::autograd::ERR_BACKWARD_TWICE);
  std::vector<int> values;
  std::vector<at::Tensor> given;
  for (size_t root = 0; root < gradients.size(); ++root) {
    if (!gradients[root].defined()) continue;
    for (size_t i = 0; i < step_->plan->values.size(); ++i) {
      if (step_->plan->values[i].root != static_cast<int>(root)) continue;
      values.push_back(static_cast<int>(i));
      given.push_back(gradients[root]);
    }
  }
  if (plain && CoverBackward(values, given)) return true;
  // Build the real graph here and run the real backward inside this one.
  std::vector<at::Tensor> roots;
  for (int value : values) {
    roots.emplace_back(c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>::reclaim_copy(step_->live[value]));
  }
  Diverge(DivergenceReason::kBackward, "the recorded backward", "another backward", "seen by the engine");
  torch::autograd::edge_list edges;
  for (const auto& root : roots) edges.push_back(torch::autograd::impl::gradient_edge(root));
  const bool keep_graph = torch::autograd::get_current_graph_task_keep_graph();
  torch::autograd::Engine::get_default_engine().execute(edges, given, keep_graph, c10::GradMode::is_enabled(), /*accumulate_grad=*/true, {});
  return false;
}

}  // namespace outrider::seam
