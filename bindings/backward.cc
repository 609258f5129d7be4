#include "backward.h"

#include <torch/csrc/autograd/python_variable.h>

#include <memory>
#include <string>
#include <vector>

#include "coexec/session.h"
#include "seam/eligibility.h"
#include "seam/lazy_impl.h"
#include "seam/settle.h"

namespace py = pybind11;
using outrider::coexec::Session;

namespace {

// False when an element is no tensor with a gradient function (a GradientEdge, None): then the call is not plain.
bool CollectRoots(const py::handle& tensors, std::vector<at::Tensor>& roots) {
  for (const auto& item : py::reinterpret_borrow<py::iterable>(tensors)) {
    if (!THPVariable_Check(item.ptr())) return false;
    const at::Tensor& tensor = THPVariable_Unpack(item.ptr());
    if (!tensor.requires_grad()) return false;
    roots.push_back(tensor);
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
  std::vector<at::Tensor> roots, given;
  bool plain = !keep_graph && !create_graph && accumulate && (inputs.is_none() || py::len(inputs) == 0);
  plain = CollectRoots(tensors, roots) && CollectGradients(gradients, given) && plain && roots.size() == given.size();
  return static_cast<int>(Session::Get().BackwardEnter(outrider::seam::GradientEdges(roots), given, plain));
}

}  // namespace

// Raw accesses made between begin and end are of kinds that leave no pointer behind.
void LearnTransientSites(bool on) {
  static std::unique_ptr<outrider::seam::LearnCallSites> learning;
  learning.reset();
  if (on) learning = std::make_unique<outrider::seam::LearnCallSites>(outrider::seam::LearnCallSites::Kind::kTransient);
}

void DefineBackward(py::module_& m) {
  m.def("learn_transient", &LearnTransientSites);
  m.def("probe_tensor", [] { return py::reinterpret_steal<py::object>(THPVariable_Wrap(outrider::seam::GraftedProbe())); });
  m.def("backward_enter", &BackwardEnter);
  m.def("reveal_history", [](const py::object& tensor, const std::string& how) {
    if (THPVariable_Check(tensor.ptr())) Session::Get().RevealHistory(THPVariable_Unpack(tensor.ptr()), how);
  });
  m.def("reveal_view", [](const py::object& tensor, const std::string& how) {
    if (THPVariable_Check(tensor.ptr())) Session::Get().RevealView(THPVariable_Unpack(tensor.ptr()), how);
  });
  m.def("backward_exit", [](bool completed) { Session::Get().BackwardExit(completed); });
}
