#include "serve_router.h"

#include <pybind11/stl.h>

#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "result.h"
#include "serve/cpu/cpu_router.h"
#include "serve/router/staged_router.h"
#include "serve_gpu/router_device.h"
#include "serve_runs.h"

namespace py = pybind11;
namespace base = outrider::base;
namespace files = outrider::files;
namespace kernels = outrider::kernels;
namespace serve = outrider::serve;

namespace {

// Normal weights under the names of a router's file, the same for each seed.
class RandomTensors {
 public:
  RandomTensors(const serve::RouterSpec& spec, uint32_t seed) : random_(seed) {
    const int64_t w = spec.width;
    Add("embed.weight", {spec.vocab, w}, 1, 0);
    for (const char* name : {"block.attn_norm", "block.mlp_norm", "norm"})
      Add(std::string(name) + ".weight", {w}, 0.2F, 1);
    for (const char* name : {"block.q", "block.k", "block.v", "block.o", "block.w1", "block.w2"}) AddLinear(name, w, w);
    AddLinear("head", spec.experts, w);
  }
  const serve::WeightSource& source() const { return source_; }

 private:
  void AddLinear(const std::string& name, int64_t rows, int64_t columns) {
    Add(name + ".weight", {rows, columns}, 1 / std::sqrt(static_cast<float>(columns)), 0);
    Add(name + ".bias", {rows}, 0.2F, 0);
  }
  void Add(const std::string& name, std::vector<int64_t> shape, float scale, float mean) {
    std::normal_distribution<float> normal(mean, scale);
    std::vector<float>& kept = values_[name];
    kept.resize(static_cast<size_t>(shape.size() == 2 ? shape[0] * shape[1] : shape[0]));
    for (float& number : kept) number = normal(random_);
    source_[name] = {files::Dtype::kF32, std::move(shape), kept.data()};
  }

  std::mt19937 random_;
  std::map<std::string, std::vector<float>> values_;
  serve::WeightSource source_;
};

class RouterPasses {
 public:
  using Runs = std::vector<std::tuple<Ids, int64_t, Ids>>;

  RouterPasses(const std::string& device, int64_t width, int64_t heads, int64_t experts, int64_t vocab, int64_t context,
               int64_t pages, int threads, uint32_t seed)
      : experts_(experts) {
    serve::RouterSpec spec;
    spec.vocab = vocab, spec.experts = experts, spec.width = width, spec.heads = heads;
    spec.scale = serve::ScoreScale::kSqrt;
    const serve::ModelShape shape{.vocab = vocab, .context = context, .experts = experts, .route_pages = pages};
    const RandomTensors tensors(spec, seed);
    if (device == "cpu") {
      router_ = Unwrap(
          serve::CpuRouter::Make(spec, tensors.source(), width, shape, std::make_shared<kernels::Workers>(threads)));
      return;
    }
    if (device != "cuda") throw py::value_error("error E_OPTION: device: found " + device + ", expected cpu or cuda");
    Unwrap(serve::CheckRouter(spec, width, shape));
    const auto weights = Unwrap(serve::ReadRouter(spec, tensors.source(), width));
    router_ = std::make_unique<serve::StagedRouter>(
        spec, shape, Unwrap(outrider::serve_gpu::MakeCudaRouter(spec, weights, shape, /*device=*/0)));
  }

  py::tuple Run(const Runs& passed) {
    std::vector<serve::RouteRun> runs;
    int64_t tokens = 0;
    for (const auto& [ids, position, pages] : passed) {
      runs.push_back({Span(ids), position, Span(pages)});
      tokens += ids.size();
    }
    py::array_t<float> out({tokens, experts_});
    const std::span<float> to(out.mutable_data(), static_cast<size_t>(out.size()));
    double seconds = 0;
    auto done = [&] {
      const py::gil_scoped_release unlocked;
      const int64_t start = base::NowNs();
      auto result = router_->Logits(runs, to);
      seconds = static_cast<double>(base::NowNs() - start) * 1e-9;
      return result;
    }();
    Unwrap(std::move(done));
    return py::make_tuple(out, seconds);
  }

 private:
  int64_t experts_;
  std::unique_ptr<serve::LogitsRouter> router_;
};

}  // namespace

void DefineRouterPasses(py::module_& m) {
  py::class_<RouterPasses>(m, "RouterPasses", "A router with normal weights, which device, shape and seed make.")
      .def(py::init<const std::string&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, uint32_t>(),
           py::kw_only(), py::arg("device"), py::arg("width"), py::arg("heads"), py::arg("experts"), py::arg("vocab"),
           py::arg("context"), py::arg("pages"), py::arg("threads") = 1, py::arg("seed") = 0)
      .def("run", &RouterPasses::Run, py::arg("runs"),
           "Logits [tokens, experts] of runs (ids int32, position of the first, pages int32), and seconds.");
}
