#include "seam/self_test.h"

#include <ATen/ops/add.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/variable.h>

#include "seam/gil.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/outer_placeholder.h"
#include "seam/settle.h"

namespace outrider::seam {

void LearnEngineCallSites() {
  at::Tensor x = at::ones({4, 4}).requires_grad_();
  at::Tensor y = at::mul(x, x);
  at::Tensor loss = at::sum(at::add(at::add(at::sin(y), at::cos(y)), at::exp(y)));
  GilRelease without_lock;
  LearnCallSites learning;
  loss.backward();
}

at::Tensor GraftedProbe() {
  LanesOff off;
  at::Tensor probe = at::ones({4});
  Graft(*probe.unsafeGetTensorImpl());
  return probe;
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
