#include "seam/autograd_watch.h"

#include <ATen/core/VariableHooksInterface.h>
#include <torch/csrc/autograd/engine.h>

#include <memory>
#include <string_view>
#include <typeinfo>
#include <utility>

#include "seam/keys.h"
#include "seam/outer_dummy_node.h"
#include "seam/torch_adapter.h"

namespace outrider::seam {
namespace {

using at::Tensor;
using at::TensorBase;
using torch::autograd::Edge;
using torch::autograd::edge_list;
using torch::autograd::Engine;
using torch::autograd::variable_list;

edge_list Resolve(const edge_list& edges) {
  edge_list real;
  real.reserve(edges.size());
  for (const Edge& edge : edges) real.push_back(DummyNode::Resolve(edge));
  return real;
}

// Asks, then has the engine that was there do the work: its device threads and queues stay the only ones.
class WatchedEngine final : public Engine {
 public:
  WatchedEngine(AutogradWatcher& watcher, Engine& real) : watcher_(watcher), real_(real) {}

  variable_list execute(const edge_list& roots, const variable_list& gradients, bool keep_graph, bool create_graph,
                        bool accumulate_grad, const edge_list& outputs) override {
    const auto run = [&](const edge_list& from, const edge_list& to) {
      return real_.execute(from, gradients, keep_graph, create_graph, accumulate_grad, to);
    };
    if (!ThreadEnrolled()) return run(roots, outputs);
    const bool plain = !keep_graph && !create_graph && accumulate_grad && outputs.empty();
    const BackwardAnswer answer = watcher_.BackwardEnter(roots, gradients, plain);
    if (answer == BackwardAnswer::kHandled) return {};
    // The caller took the edges before the watcher brought real history about.
    if (answer == BackwardAnswer::kPlain) return run(Resolve(roots), Resolve(outputs));
    variable_list captured;
    try {
      captured = run(roots, outputs);
    } catch (...) {
      watcher_.BackwardExit(/*completed=*/false);
      throw;
    }
    watcher_.BackwardExit(/*completed=*/true);
    return captured;
  }

  // All else is the other engine's as well: what Python's makes of saved tensors and anomalies, torch casts to its types.
  c10::intrusive_ptr<at::ivalue::Future> execute_with_graph_task(const std::shared_ptr<torch::autograd::GraphTask>& task,
                                                                 NodePtr<torch::autograd::Node> root,
                                                                 torch::autograd::InputBuffer&& inputs) override {
    return real_.execute_with_graph_task(task, std::move(root), std::move(inputs));
  }
  std::unique_ptr<torch::autograd::AnomalyMetadata> make_anomaly_metadata() override { return real_.make_anomaly_metadata(); }
  std::unique_ptr<torch::autograd::SavedVariableHooks> get_default_saved_variable_hooks() override {
    return real_.get_default_saved_variable_hooks();
  }

  Engine& Real() const { return real_; }

 private:
  AutogradWatcher& watcher_;
  Engine& real_;
};

// Torch's own, with or without Python. Python's class lies in a library that this one is not linked with.
bool IsOfTorch(const Engine& engine) {
  return typeid(engine) == typeid(Engine) ||
         std::string_view(typeid(engine).name()) == "N5torch8autograd6python12PythonEngineE";
}

// Hooks and retain_grad need the node that a tensor really has.
class WatchedHooks final : public at::impl::VariableHooksInterface {
 public:
  WatchedHooks(AutogradWatcher& watcher, const VariableHooksInterface& real) : watcher_(watcher), real_(real) {}

  unsigned _register_hook(const TensorBase& self, std::function<TensorBase(const TensorBase&)> hook) const override {
    Reveal(self, "Tensor::register_hook");
    return real_._register_hook(self, std::move(hook));
  }
  void retain_grad(const TensorBase& self) const override {
    Reveal(self, "Tensor::retain_grad");
    real_.retain_grad(self);
  }

  bool is_view(const TensorBase& self) const override {
    if (ThreadEnrolled()) watcher_.RevealView(Tensor(self), "Tensor::is_view");
    return real_.is_view(self);
  }
  const TensorBase& base(const TensorBase& self) const override {
    if (ThreadEnrolled()) watcher_.RevealView(Tensor(self), "Tensor::_base");
    return real_.base(self);
  }
  // Nobody asks this of a leaf but who will differentiate with respect to it, and takes its accumulator next.
  int64_t output_nr(const TensorBase& self) const override {
    if (ThreadEnrolled() && self.requires_grad() && real_.is_leaf(self)) watcher_.RevealGraph("gradient of a leaf");
    return real_.output_nr(self);
  }

  TensorBase tensor_data(const TensorBase& self) const override { return real_.tensor_data(self); }
  TensorBase variable_data(const TensorBase& self) const override { return real_.variable_data(self); }
  const NodePtr<torch::autograd::Node>& grad_fn(const TensorBase& self) const override { return real_.grad_fn(self); }
  void remove_hook(const TensorBase& self, unsigned pos) const override { real_.remove_hook(self, pos); }
  const std::string& name(const TensorBase& self) const override { return real_.name(self); }
  bool is_leaf(const TensorBase& self) const override { return real_.is_leaf(self); }
  void set_data(const TensorBase& self, const TensorBase& data) const override { real_.set_data(self, data); }
  TensorBase data(const TensorBase& self) const override { return real_.data(self); }
  int64_t _version(const TensorBase& self) const override { return real_._version(self); }
  bool retains_grad(const TensorBase& self) const override { return real_.retains_grad(self); }
  void _backward(const Tensor& self, at::TensorList inputs, const std::optional<Tensor>& gradient,
                 std::optional<bool> keep_graph, bool create_graph) const override {
    real_._backward(self, inputs, gradient, keep_graph, create_graph);
  }
  void requires_grad_(const TensorBase& self, bool requires_grad) const override {
    real_.requires_grad_(self, requires_grad);
  }
  void basic_autograd_not_implemented_fallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                                               torch::jit::Stack* stack) const override {
    real_.basic_autograd_not_implemented_fallback(op, keys, stack);
  }
  std::optional<c10::ScalarType> grad_dtype(const TensorBase& self) const override { return real_.grad_dtype(self); }
  void set_grad_dtype(const TensorBase& self, const std::optional<c10::ScalarType>& dtype) const override {
    real_.set_grad_dtype(self, dtype);
  }

 private:
  void Reveal(const TensorBase& self, const char* how) const {
    if (ThreadEnrolled()) watcher_.RevealHistory(Tensor(self), how);
  }

  AutogradWatcher& watcher_;
  const VariableHooksInterface& real_;
};

// Never destroyed: torch may ask for its engine until the process ends.
WatchedEngine* g_engine = nullptr;

Engine& Watched() { return *g_engine; }

}  // namespace

bool WatchAutograd(AutogradWatcher& watcher) {
  Engine& current = Engine::get_default_engine();
  if (!IsOfTorch(current)) return false;
  g_engine = new WatchedEngine(watcher, current);
  at::impl::SetVariableHooks(new WatchedHooks(watcher, *at::impl::GetVariableHooks()));
  torch::autograd::set_default_engine_stub(&Watched);
  return true;
}

void RunBackward(const edge_list& roots, const std::vector<Tensor>& gradients, bool keep_graph, bool create_graph) {
  Engine& current = Engine::get_default_engine();
  Engine& real = &current == g_engine ? g_engine->Real() : current;
  real.execute(roots, gradients, keep_graph, create_graph, /*accumulate_grad=*/true, {});
}

}  // namespace outrider::seam
