#include "backward.h"

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <vector>

#include "coexec/session.h"

namespace py = pybind11;
using outrider::coexec::Session;

namespace {

// False when an element is no tensor with a gradient function (a GradientEdge, None): then the call is not plain.
bool CollectRoots(const py::handle& tensors, torch::autograd::edge_list& roots) {
  for (const auto& item : py::reinterpret_borrow<py::iterable>(tensors)) {
    if (!THPVariable_Check(item.ptr())) return false;
    const at::Tensor& tensor = THPVariable_Unpack(item.ptr());
    if (!tensor.requires_grad()) return false;
    roots.push_back(torch::autograd::impl::gradient_edge(tensor));
  }
  return true;
}

bool CollectGradients(const py::handle& gradients, std::vector<at::Tensor>& out) {
  for (const auto& item : py::reinterpret_borrow<py::iterable>(gradients)) {
    if (!THPVariable_Check(item.ptr())) return false;
    out.push_back(THPVariable_Unpack(item.ptr()));
  }
  return true;
}

int BackwardEnter(const py::object& tensors, const py::object& gradients, bool keep_graph, bool create_graph, const py::object& inputs,
                  bool accumulate) {
  torch::autograd::edge_list roots;
  std::vector<at::Tensor> given;
  bool plain = !keep_graph && !create_graph && accumulate && (inputs.is_none() || py::len(inputs) == 0);
  plain = CollectRoots(tensors, roots) && CollectGradients(gradients, given) && plain && roots.size() == given.size();
  return Session::Get().BackwardEnter(roots, given, plain);
}

}  // namespace

void DefineBackward(py::module_& m) {
  m.def("backward_enter", &BackwardEnter);
  m.def("backward_exit", [] { Session::Get().BackwardExit(); });
}
