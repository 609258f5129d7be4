#include "kernels.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/channel_store.h"
#include "kernels/cpu.h"
#include "kernels/decode.h"
#include "kernels/prefill.h"
#include "kernels/workers.h"
#include "result.h"

namespace py = pybind11;
namespace kernels = outrider::kernels;

namespace {

using Experts = py::array_t<uint8_t, py::array::c_style>;
using Signatures = py::array_t<uint16_t, py::array::c_style>;

kernels::Number NumberOf(const py::array& array) {
  if (array.dtype().is(py::dtype::of<float>())) return kernels::Number::kF32;
  if (array.dtype().is(py::dtype::of<uint16_t>())) return kernels::Number::kBf16;
  throw py::value_error("error E_NUMBER: expected float32, or bf16 as uint16");
}

// A contiguous matrix of this shape and number.
void CheckMatrix(const py::array& array, kernels::Number number, int64_t rows, int64_t columns) {
  const bool fits = array.ndim() == 2 && array.shape(0) == rows && array.shape(1) == columns &&
                    (array.flags() & py::array::c_style) != 0 && NumberOf(array) == number;
  if (!fits)
    throw py::value_error("error E_SHAPE: expected a contiguous matrix [" + std::to_string(rows) + ", " +
                          std::to_string(columns) + "] in the number of the layer");
}

// The engine of that name; the fastest for an empty one.
template <class Engines>
auto Named(const Engines& engines, const std::string& name) {
  if (name.empty()) return engines.front();
  for (const auto* engine : engines)
    if (name == engine->name) return engine;
  throw py::value_error("error E_OPTION: engine: found " + name + ", which this processor does not have");
}

class TiedFfn {
 public:
  TiedFfn(const py::array& gate, const py::array& up, const py::array& down, const Signatures& signatures,
          int64_t experts, int threads)
      : store_(Pack(gate, up, down, signatures, experts)), workers_(std::make_unique<kernels::Workers>(threads)) {}

  void Prefill(const py::array& x, py::array& y, const Experts& experts, const std::string& engine) {
    const kernels::FfnBatch batch = Batch(x, y, experts);
    const auto* chosen = Named(kernels::PrefillEngines(store_.number()), engine);
    const py::gil_scoped_release unlocked;
    Unwrap(kernels::Prefill(store_, batch, *chosen, scratch_, *workers_));
  }

  void Decode(const py::array& x, py::array& y, const Experts& experts, const std::string& engine) {
    const kernels::FfnBatch batch = Batch(x, y, experts);
    const auto* chosen = Named(kernels::DecodeEngines(store_.number()), engine);
    const py::gil_scoped_release unlocked;
    Unwrap(kernels::Decode(store_, batch, *chosen, scratch_, *workers_));
  }

  std::vector<std::string> Engines() const {
    std::vector<std::string> names;
    for (const auto* engine : kernels::PrefillEngines(store_.number())) names.emplace_back(engine->name);
    return names;
  }

 private:
  static kernels::ChannelStore Pack(const py::array& gate, const py::array& up, const py::array& down,
                                    const Signatures& signatures, int64_t experts) {
    const int64_t channels = signatures.size(), width = gate.ndim() == 2 ? gate.shape(1) : 0;
    const kernels::Number number = NumberOf(gate);
    CheckMatrix(gate, number, channels, width);
    CheckMatrix(up, number, channels, width);
    CheckMatrix(down, number, width, channels);
    const kernels::DenseFfn dense{gate.data(), up.data(), down.data(), number, channels, width};
    return Unwrap(kernels::ChannelStore::Pack(dense, {signatures.data(), static_cast<size_t>(channels)}, experts));
  }

  kernels::FfnBatch Batch(const py::array& x, py::array& y, const Experts& experts) const {
    CheckMatrix(x, store_.number(), experts.size(), store_.width());
    CheckMatrix(y, store_.number(), experts.size(), store_.width());
    return {x.data(), y.mutable_data(), {experts.data(), static_cast<size_t>(experts.size())}};
  }

  kernels::ChannelStore store_;
  std::unique_ptr<kernels::Workers> workers_;
  kernels::Scratch scratch_;
};

}  // namespace

void DefineKernels(py::module_& m) {
  py::class_<TiedFfn>(m, "TiedFfn",
                      "One layer as channel records: gate and up [D, d], down [d, D], float32 or bf16 as uint16; "
                      "signatures uint16 [D], bit i set when the channel is in expert i.")
      .def(py::init<const py::array&, const py::array&, const py::array&, const Signatures&, int64_t, int>(),
           py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("signatures"), py::arg("experts"),
           py::arg("threads") = 1)
      .def("prefill", &TiedFfn::Prefill, py::arg("x"), py::arg("y"), py::arg("experts"), py::arg("engine") = "",
           "Writes y [T, d] for x [T, d] and expert ids uint8 [T].")
      .def("decode", &TiedFfn::Decode, py::arg("x"), py::arg("y"), py::arg("experts"), py::arg("engine") = "",
           "As prefill, for at most 32 tokens.")
      .def_property_readonly("engines", &TiedFfn::Engines, "Instruction sets of this processor, the fastest first.");
}
