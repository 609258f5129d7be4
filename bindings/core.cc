// outrider._core: the extension module. Thin: converts, holds no state.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/headeronly/version.h>

#include "coexec/session.h"
#include "kernels.h"
#include "model.h"
#include "moe.h"
#include "seam/eligibility.h"
#include "seam/env.h"
#include "seam/geometry.h"
#include "seam/gil.h"
#include "seam/lazy_impl.h"
#include "seam/settle.h"
#include "serve.h"
#include "serve_cpu.h"
#include "serve_gpu.h"
#include "serve_router.h"
#include "serve_simulate.h"

namespace py = pybind11;
using outrider::coexec::Session;
using outrider::seam::FlushReason;

namespace {

bool HoldsLock() { return Py_IsInitialized() != 0 && PyGILState_Check() == 1; }
void* ReleaseLock() { return PyEval_SaveThread(); }
void AcquireLock(void* state) { PyEval_RestoreThread(static_cast<PyThreadState*>(state)); }

// Folders of packages whose frames are not the user's: torch and this one. Filled at import.
std::vector<std::string>& LibraryFolders() {
  static auto* folders = new std::vector<std::string>();
  return *folders;
}

bool IsLibraryFile(const std::string& file) {
  if (file.rfind("<frozen", 0) == 0) return true;
  for (const auto& folder : LibraryFolders()) {
    if (file.rfind(folder, 0) == 0) return true;
  }
  return false;
}

void NoteLibraryFolder(const char* package) {
  const auto file = py::module_::import(package).attr("__file__").cast<std::string>();
  LibraryFolders().push_back(file.substr(0, file.rfind('/') + 1));
}

// Python code that keeps no address that it asks for: ends of "FILE", or of "FILE:FUNCTION". Filled when the shims are
// installed.
std::vector<std::string>& Readers() {
  static auto* readers = new std::vector<std::string>();
  return *readers;
}

struct Frame {
  std::string file, function;
};

bool IsReader(const Frame& frame) {
  const std::string place = frame.file + ":" + frame.function;
  return std::any_of(Readers().begin(), Readers().end(),
                     [&](const std::string& end) { return frame.file.ends_with(end) || place.ends_with(end); });
}

// Where such code and others get their addresses through: the shim around data_ptr, and storage objects of older kind.
bool IsBetween(const Frame& frame) {
  return frame.file.ends_with("/outrider/shims.py") || frame.file.ends_with("/torch/storage.py");
}

Frame FrameOf(const py::object& frame) {
  auto* code = PyFrame_GetCode(reinterpret_cast<PyFrameObject*>(frame.ptr()));
  const auto keep = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(code));
  const auto text = [](PyObject* name) { return py::reinterpret_borrow<py::str>(name).cast<std::string>(); };
  return {text(code->co_filename), text(code->co_name)};
}

// Whether who asks on this thread is one of them.
bool KnownReaderAsks() {
  if (Py_IsInitialized() == 0 || PyGILState_GetThisThreadState() == nullptr) return false;
  const py::gil_scoped_acquire lock;
  auto frame = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(PyEval_GetFrame()));
  while (frame && IsBetween(FrameOf(frame))) {
    auto* back = PyFrame_GetBack(reinterpret_cast<PyFrameObject*>(frame.ptr()));
    frame = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(back));
  }
  return frame && IsReader(FrameOf(frame));
}

// The innermost frame outside torch and outrider.
const char* LocateUserFrame() {
  thread_local std::string text;
  text.clear();
  if (Py_IsInitialized() == 0) return text.c_str();
  const py::gil_scoped_acquire lock;
  py::object frame = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(PyEval_GetFrame()));
  while (frame && !frame.is_none()) {
    const auto file = py::str(frame.attr("f_code").attr("co_filename")).cast<std::string>();
    if (!IsLibraryFile(file)) {
      text = file + ":" + std::to_string(frame.attr("f_lineno").cast<int>());
      break;
    }
    frame = frame.attr("f_back");
  }
  return text.c_str();
}

py::dict RowToDict(const outrider::Row& row) {
  py::dict out;
  out["step"] = row.step;
  out["name"] = row.name;
  out["lane"] = row.lane;
  out["tier"] = row.tier;
  out["recorded"] = row.recorded;
  out["events"] = row.events;
  out["device_ops"] = row.device_ops;
  out["covered_ops"] = row.covered_ops;
  out["covered_share"] = row.CoveredShare();
  out["host_ops"] = row.host_ops;
  out["inline_ops"] = py::cast(row.inline_ops);
  out["feeds"] = row.feeds;
  out["copied_bytes"] = row.copied_bytes;
  out["fetches"] = row.fetches;
  out["flushes"] = py::cast(row.flushes);
  py::list divergences;
  for (const auto& divergence : row.divergences) {
    py::dict entry;
    entry["event"] = divergence.event;
    entry["code"] = divergence.code;
    entry["expected"] = divergence.expected;
    entry["got"] = divergence.got;
    entry["field"] = divergence.field;
    entry["where"] = divergence.where;
    divergences.append(entry);
  }
  out["divergences"] = divergences;
  out["replayed_events"] = row.replayed_events;
  out["host_us"] = row.host_us;
  out["host_wait_us"] = row.host_wait_us;
  out["runner_busy_us"] = row.runner_busy_us;
  out["runner_wait_us"] = row.runner_wait_us;
  out["note"] = row.note;
  return out;
}

py::list Spans() {
  static constexpr const char* kKinds[] = {"step", "wait", "run", "record", "replay", "capture"};
  py::list out;
  for (const auto& span : Session::Get().Spans().Copy()) {
    py::dict entry, args;
    args["step"] = span.step;
    entry["name"] = span.name;
    entry["thread"] = span.thread == outrider::coexec::SpanThread::kImperative ? "imperative" : "graph runner";
    entry["start_us"] = static_cast<double>(span.start_ns) / 1e3;
    entry["dur_us"] = static_cast<double>(span.duration_ns) / 1e3;
    entry["kind"] = kKinds[static_cast<size_t>(span.kind)];
    entry["args"] = args;
    out.append(entry);
  }
  return out;
}

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

int BackwardEnter(const py::object& tensors, const py::object& gradients, bool keep_graph, bool create_graph,
                  const py::object& inputs, bool accumulate) {
  std::vector<at::Tensor> roots, given;
  bool plain = !keep_graph && !create_graph && accumulate && (inputs.is_none() || py::len(inputs) == 0);
  plain = CollectRoots(tensors, roots) && CollectGradients(gradients, given) && plain && roots.size() == given.size();
  return static_cast<int>(Session::Get().BackwardEnter(outrider::seam::GradientEdges(roots), given, plain));
}

// Raw accesses made from now on leave no pointer behind: "read" reads at once, "counted" leaves a count on the storage,
// "" ends it.
void LearnAccesses(const std::string& kind) {
  using outrider::seam::LearnCallSites;
  static std::unique_ptr<LearnCallSites> learning;
  learning.reset();
  if (kind == "read") learning = std::make_unique<LearnCallSites>(LearnCallSites::Kind::kRead);
  if (kind == "counted") learning = std::make_unique<LearnCallSites>(LearnCallSites::Kind::kCounted);
}

// The program gets the bare address of the bytes of a tensor or of a storage object.
void GivesAddress(const py::object& owner) {
  if (KnownReaderAsks()) return;
  if (THPVariable_Check(owner.ptr())) {
    const at::Tensor& tensor = THPVariable_Unpack(owner.ptr());
    if (outrider::seam::IsPlainStrided(*tensor.unsafeGetTensorImpl()) &&
        tensor.unsafeGetTensorImpl()->unsafe_storage()) {
      outrider::seam::SettleForAddress(tensor.unsafeGetTensorImpl()->unsafe_storage());
    }
  } else if (torch::isStorage(owner.ptr())) {
    outrider::seam::SettleForAddress(torch::createStorage(owner.ptr()));
  }
}

// The funnel of Python's backward calls: backward_enter(tensors, gradients, keep_graph, create_graph, inputs,
// accumulate)
// -> 0 run the engine, 1 done, 2 run the engine and then call backward_exit(completed).
void DefineBackward(py::module_& m) {
  m.def("learn_accesses", &LearnAccesses);
  m.def("gives_address", &GivesAddress);
  m.def("probe_tensor",
        [] { return py::reinterpret_steal<py::object>(THPVariable_Wrap(outrider::seam::GraftedProbe())); });
  m.def("backward_enter", &BackwardEnter);
  m.def("reveal_history", [](const py::object& tensor, const std::string& how) {
    if (THPVariable_Check(tensor.ptr())) Session::Get().RevealHistory(THPVariable_Unpack(tensor.ptr()), how);
  });
  m.def("reveal_view", [](const py::object& tensor, const std::string& how) {
    if (THPVariable_Check(tensor.ptr())) Session::Get().RevealView(THPVariable_Unpack(tensor.ptr()), how);
  });
  m.def("backward_exit", [](bool completed) { Session::Get().BackwardExit(completed); });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  outrider::seam::InstallGilHooks({&HoldsLock, &ReleaseLock, &AcquireLock});
  outrider::seam::InstallFrameLocator(&LocateUserFrame);
  outrider::seam::InstallReaderTest(&KnownReaderAsks);
  m.def("set_readers", [](std::vector<std::string> ends) { Readers() = std::move(ends); });
  NoteLibraryFolder("torch");
  NoteLibraryFolder("outrider");
  m.def("builds_own_nodes", [](const std::string& how) { Session::Get().BuildsOwnNodes(how); });
  m.def("load", [] { return Session::Get().EnsureLoaded(); });
  m.def("step_begin", [](const std::string& name) { return Session::Get().BeginStep(name); });
  m.def("step_end", [] { Session::Get().EndStep(); });
  m.def("step_abort", [] { Session::Get().AbortStep(); });
  m.def("flush", [] { Session::Get().Flush(FlushReason::kCalled); });
  m.def("flush_for_flag", [](bool sets) { Session::Get().FlushForFlag(sets); }, pybind11::arg("sets") = false);
  m.def(
      "flag_changed",
      [](const std::string& flag, const std::string& value) { Session::Get().FlagChanged(flag, value); },
      pybind11::arg("flag"), pybind11::arg("value"));
  m.def("leave", [] { Session::Get().Leave(); });
  m.def("reset", [] { Session::Get().Reset(); });
  m.def("shutdown", [] { Session::Get().Shutdown(); });
  m.def("set_option", [](const std::string& key, int64_t value) { Session::Get().SetOption(key, value); });
  m.def("get_option", [](const std::string& key) { return Session::Get().GetOption(key); });
  m.def("describe", [] { return Session::Get().Describe(); });
  m.def("rows", [] {
    py::list out;
    for (const auto& row : Session::Get().Rows().Rows()) out.append(RowToDict(row));
    return out;
  });
  m.def("clear_rows", [] { Session::Get().ClearRows(); });
  m.def("timeline", &Spans);
  m.def("flush_for_fork", [] { Session::Get().BeforeFork(); });
  m.def("suspend", [] { Session::Get().Suspend(); });
  m.def("resume", [] { Session::Get().Resume(); });
  m.def("graph", [](const std::string& format, const std::string& lane) { return Session::Get().Graph(format, lane); });
  m.def("version", [] {
    py::dict out;
    out["outrider"] = OUTRIDER_VERSION;
    out["built for torch"] = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
    out["mechanisms"] = Session::Get().Describe();
    return out;
  });
  DefineBackward(m);
  DefineModel(m);
  DefineMoe(m);
  DefineKernels(m);
  DefineCpuPasses(m);
  DefineSimulate(m);
  DefineGpuPasses(m);
  DefineRouterPasses(m);
  DefineServe(m);
}
