#include "serve_gpu.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "result.h"
#include "serve_gpu/gpu_executor.h"
#include "serve_runs.h"

namespace py = pybind11;
namespace model = outrider::model;
namespace serve = outrider::serve;
namespace serve_gpu = outrider::serve_gpu;
namespace spec = outrider::spec;

namespace {

// A Llama of any shape with normal weights on a device.
struct Weights {
  spec::Config config;
  model::Parameters parameters;

  Weights(int64_t layers, int64_t width, int64_t heads, int64_t kv_heads, int64_t ffn, int64_t vocab, int64_t context,
          const std::string& device, const std::string& dtype, int64_t window) {
    const at::NoGradGuard no_grad;
    if (device != "cpu") Unwrap(serve_gpu::CheckCuda());
    config.model_type = "llama";
    config.hidden_size = width, config.layers = layers, config.heads = heads, config.kv_heads = kv_heads;
    config.head_dim = width / heads, config.ffn = ffn, config.vocab = vocab, config.max_positions = context;
    config.windows.assign(static_cast<size_t>(layers), window);
    const auto options =
        at::TensorOptions().device(at::Device(device)).dtype(dtype == "bf16" ? at::kBFloat16 : at::kFloat);
    for (const model::NamedTensor& t : model::NamedTensors(config, parameters)) {
      const bool matrix = t.shape.size() == 2;
      *t.tensor = matrix ? at::empty(t.shape, options) : at::ones(t.shape, options);
      if (matrix) t.tensor->normal_(0, t.tensor == &parameters.embed ? 1 : 1 / std::sqrt(double(t.shape[1])));
    }
  }
};

serve_gpu::GpuModel Packed(const Weights& weights, int64_t experts, const std::vector<Array<uint16_t>>& signatures,
                           bool library) {
  const at::NoGradGuard no_grad;
  serve::ExpertMap map{.experts = experts, .signatures = {}, .order = {}};
  for (const Array<uint16_t>& layer : signatures)
    map.signatures.emplace_back(layer.data(), layer.data() + layer.size());
  const at::Tensor& embed = weights.parameters.embed;
  auto packed =
      Unwrap(serve_gpu::GpuModel::Pack(weights.config, map, weights.parameters, embed.device(), embed.scalar_type()));
  if (library) Unwrap(packed.AddLibraryFfn());
  return packed;
}

class GpuPasses {
 public:
  GpuPasses(const serve_gpu::GpuModel& packed, int64_t pages, int64_t step_tokens, bool exact, bool reference,
            bool library)
      : executor_(Unwrap(serve_gpu::GpuExecutor::Make(packed, {.kv_pages = pages, .step_tokens_max = step_tokens},
                                                      {.exact = exact, .reference = reference, .library = library}))) {}

  py::tuple Logits(const std::vector<PassRun>& runs) {
    return TimedPass<float>(runs, executor_->shape().vocab,
                            [&](const auto& r, std::span<float> to) { return executor_->Run(r, to); });
  }
  py::tuple Greedy(const std::vector<PassRun>& runs) {
    return TimedPass<int64_t>(runs, 1,
                              [&](const auto& r, std::span<int64_t> to) { return executor_->RunGreedy(r, to); });
  }
  // Milliseconds of the device alone: `steps` launches of what the last pass ran, behind one another.
  double DeviceMilliseconds(int steps) { return executor_->LaunchAgain(steps) * 1e3 / steps; }
  int64_t FfnBytes(uint16_t experts) const { return executor_->FfnBytes(experts); }
  int64_t FixedBytes() const { return executor_->FixedBytes(); }
  int64_t HostWaits() const { return executor_->host_waits(); }
  void FillPages() { executor_->FillPages(); }

 private:
  std::unique_ptr<serve_gpu::GpuExecutor> executor_;
};

}  // namespace

void DefineGpuPasses(py::module_& m) {
  py::class_<Weights>(m, "GpuWeights", "Normal weights of a Llama of any shape, drawn on the device.")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const std::string&,
                    const std::string&, int64_t>(),
           py::kw_only(), py::arg("layers"), py::arg("width"), py::arg("heads"), py::arg("kv_heads"), py::arg("ffn"),
           py::arg("vocab"), py::arg("context"), py::arg("device") = "cuda", py::arg("dtype") = "bf16",
           py::arg("window") = 0);
  py::class_<serve_gpu::GpuModel>(m, "GpuModel", "Weights packed with an expert map.")
      .def(py::init(&Packed), py::arg("weights"), py::arg("experts") = 0,
           py::arg("signatures") = std::vector<Array<uint16_t>>(), py::arg("library") = false);
  py::class_<GpuPasses>(m, "GpuPasses", "The GPU executor over a packed model, without an engine around it.")
      .def(py::init<const serve_gpu::GpuModel&, int64_t, int64_t, bool, bool, bool>(), py::arg("model"), py::kw_only(),
           py::arg("pages"), py::arg("step_tokens"), py::arg("exact") = true, py::arg("reference") = false,
           py::arg("library") = false)
      .def("run", &GpuPasses::Logits, py::arg("runs"), "Logits [wanted tokens, V] and the cost of one pass.")
      .def("greedy", &GpuPasses::Greedy, py::arg("runs"), "Likeliest ids [wanted tokens, 1] and the cost of one pass.")
      .def("device_milliseconds", &GpuPasses::DeviceMilliseconds, py::arg("steps"),
           "Per launch of what the last pass ran last, without the host's work between launches.")
      .def("fill_pages", &GpuPasses::FillPages, "Fills all pages with small normal numbers.")
      .def("ffn_bytes", &GpuPasses::FfnBytes, py::arg("experts"))
      .def_property_readonly("fixed_bytes", &GpuPasses::FixedBytes)
      .def_property_readonly("host_waits", &GpuPasses::HostWaits);
}
