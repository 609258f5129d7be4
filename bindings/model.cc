#include "model.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/llama.h"
#include "result.h"

namespace py = pybind11;
namespace model = outrider::model;

namespace {

struct Model {
  model::Config config;
  model::Parameters parameters;

  at::Tensor OnDevice(const at::Tensor& ids) const {
    if (ids.dim() != 2 || ids.scalar_type() != at::kLong || ids.numel() == 0) {
      throw py::value_error("error E_IDS: ids: found another tensor, expected int64 [texts, tokens], not empty");
    }
    if (ids.size(1) > config.max_positions) {
      throw py::value_error("error E_IDS: ids: found " + std::to_string(ids.size(1)) + " tokens, expected at most " +
                            std::to_string(config.max_positions));
    }
    const auto low = ids.min().item<int64_t>(), high = ids.max().item<int64_t>();
    if (low < 0 || high >= config.vocab) {
      throw py::value_error("error E_IDS: ids: found " + std::to_string(low < 0 ? low : high) + ", expected 0 to " +
                            std::to_string(config.vocab - 1));
    }
    return ids.to(parameters.embed.device());
  }
  at::Tensor Hidden(const at::Tensor& ids) const { return model::HiddenStates(config, parameters, OnDevice(ids)); }
  at::Tensor Logits(const at::Tensor& ids) const { return model::Logits(config, parameters, Hidden(ids)); }
};

std::unique_ptr<Model> Load(const std::string& folder, const std::string& dtype, const std::string& device) {
  auto loaded = std::make_unique<Model>();
  const at::ScalarType type = Unwrap(model::DtypeNamed(dtype));
  loaded->config = Unwrap(model::LoadConfig(folder));
  loaded->parameters = Unwrap(model::LoadParameters(folder, loaded->config, type, at::Device(device)));
  return loaded;
}

}  // namespace

void DefineModel(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  py::class_<Model>(m, "Model", "A dense Llama, Qwen2 or Mistral model; weights as in its Hugging Face folder.")
      .def_static("load", &Load, py::arg("folder"), py::arg("dtype") = "float32", py::arg("device") = "cpu", unlocked)
      .def("hidden", &Model::Hidden, py::arg("ids"), unlocked, "ids int64 [B, S] -> [B, S, hidden] after the norm")
      .def("logits", &Model::Logits, py::arg("ids"), unlocked, "ids int64 [B, S] -> [B, S, vocab]");
}
