#pragma once
// The node that every placeholder with history hangs on: it stands for the whole autograd graph of a covered step, and
// its input k for value k of the plan. Nobody should ever run it: a backward is matched before the engine sees it. It
// is the net below that, and where edges lead that were taken before a step diverged.

#include <torch/csrc/autograd/function.h>

#include <memory>
#include <string>

#include "seam/outer_plan.h"
#include "seam/outer_step.h"

namespace outrider::seam {

class OuterLane;

class DummyNode final : public torch::autograd::Node {
 public:
  DummyNode(OuterLane& lane, std::weak_ptr<OuterStep> step);

  // Makes inputs for the values of a plan, and for those of another one that the step switches to.
  void Cover(const OuterPlan& plan);

  // The step has been replayed: input k leads to real[k] from now on. An edge without a function: that value's history
  // is consumed, or nobody held it.
  void HandOn(const OuterPlan& plan, torch::autograd::edge_list real);
  // Where `edge` leads by now: itself, unless it is one to a dummy node whose step has been replayed.
  static torch::autograd::Edge Resolve(const torch::autograd::Edge& edge);

  // Somebody put a hook on this node; it could be meant for any node of the step.
  bool Hooked();

  std::string name() const override { return "OutriderStepBackward"; }
  void release_variables() override { used_ = true; }

 protected:
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override;

 private:
  void Describe(int value, const OuterPlan& plan);

  OuterLane& lane_;
  std::weak_ptr<OuterStep> step_;
  torch::autograd::edge_list real_;
  bool handed_on_ = false;
  bool applying_ = false;
  bool used_ = false;
};

}  // namespace outrider::seam
