#pragma once
// What a C++ program does to autograd without passing the dispatcher: a backward pass enters the engine as one call,
// and hooks are put on tensors. The C++ counterpart of the shims in python/outrider.

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <string>
#include <vector>

namespace outrider::seam {

enum class BackwardAnswer {
  kPlain = 0,    // the engine runs; nothing to report
  kHandled = 1,  // done: gradients are in place, or will be
  kFollow = 2,   // the engine runs and its end is reported
};

// Asked on the calling thread, which has the lanes' keys switched on.
class AutogradWatcher {
 public:
  virtual ~AutogradWatcher() = default;
  // `roots` and `gradients` as the engine got them. `plain`: gradients of all leaves are accumulated, the graph is
  // freed.
  virtual BackwardAnswer BackwardEnter(const torch::autograd::edge_list& roots,
                                       const std::vector<at::Tensor>& gradients, bool plain) = 0;
  // Ends a backward that was answered kFollow. `completed`: it did not throw.
  virtual void BackwardExit(bool completed) = 0;
  // The program is about to hook into the history of `tensor`.
  virtual void RevealHistory(const at::Tensor& tensor, const std::string& how) = 0;
  // The program asks what `tensor` is a view of.
  virtual void RevealView(const at::Tensor& tensor, const std::string& how) = 0;
  // The program is about to walk the graph of the step, from somewhere outside it.
  virtual void RevealGraph(const std::string& how) = 0;
};

// Puts an engine that asks `watcher` first in front of the default one, for good, where that is torch's own: C++ code
// calls the default engine. Python's calls go to Python's engine directly and have shims of their own in front of it,
// so each call is seen once. An engine of a third party is left alone. Returns whether calls are watched. Call it once.
bool WatchAutograd(AutogradWatcher& watcher);

// Runs a backward pass that accumulates into all leaves, and asks nobody.
void RunBackward(const torch::autograd::edge_list& roots, const std::vector<at::Tensor>& gradients, bool keep_graph,
                 bool create_graph);

}  // namespace outrider::seam
