#include "serve_cpu.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "result.h"
#include "serve_model.h"
#include "serve_runs.h"

namespace py = pybind11;
namespace serve = outrider::serve;

namespace {

struct Route {
  Ids ids;
  int64_t position;
  Ids pages;
  int64_t previous;  // -1: none
};

class CpuPasses {
 public:
  explicit CpuPasses(const ServingOptions& options) : served_(Unwrap(OpenForServing(options))) {}

  py::tuple RunPass(const std::vector<PassRun>& passed) {
    return TimedPass<float>(passed, served_.executor->shape().vocab,
                            [&](const auto& runs, std::span<float> to) { return served_.executor->Run(runs, to); });
  }

  py::tuple Greedy(const std::vector<PassRun>& passed) {
    return TimedPass<int64_t>(
        passed, 1, [&](const auto& runs, std::span<int64_t> to) { return served_.executor->RunGreedy(runs, to); });
  }

  Experts RouteTokens(const std::vector<Route>& passed) {
    if (served_.pregate == nullptr) throw py::value_error("error E_MODEL: found a dense model, expected a router");
    std::vector<serve::RouteRun> runs;
    int64_t tokens = 0;
    for (const Route& r : passed) {
      const auto previous = r.previous < 0 ? serve::kNoExpert : static_cast<serve::ExpertId>(r.previous);
      runs.push_back({Span(r.ids), r.position, Span(r.pages), previous});
      tokens += r.ids.size();
    }
    Experts experts(tokens);
    const std::span<uint8_t> to(experts.mutable_data(), static_cast<size_t>(tokens));
    auto done = [&] {
      const py::gil_scoped_release unlocked;
      return served_.pregate->Route(runs, to);
    }();
    Unwrap(std::move(done));
    return experts;
  }

  py::dict Shape() const {
    const serve::ModelShape& shape = served_.executor->shape();
    py::dict out;
    out["vocab"] = shape.vocab;
    out["context"] = shape.context;
    out["experts"] = shape.experts;
    out["kv_page_tokens"] = shape.kv_page_tokens;
    out["kv_pages"] = shape.kv_pages;
    out["route_pages"] = shape.route_pages;
    out["step_tokens_max"] = shape.step_tokens_max;
    return out;
  }
  int64_t FixedBytes() const { return served_.executor->FixedBytes(); }
  int64_t FfnBytes(uint16_t experts) const { return served_.executor->FfnBytes(experts); }

 private:
  ServedModel served_;
};

CpuPasses* Open(const std::string& folder, const std::string& parent, const std::string& format, int threads,
                int64_t context, int64_t pages, int64_t step_tokens) {
  return new CpuPasses({.folder = folder,
                        .parent = parent,
                        .device = "cpu",
                        .format = format,
                        .threads = threads,
                        .limits = {context, pages, pages, step_tokens},
                        .layer_router = ""});
}

}  // namespace

void DefineCpuPasses(py::module_& m) {
  py::class_<PassRun>(m, "PassRun", "Consecutive tokens of one text in a pass.")
      .def(py::init<Ids, Experts, int64_t, Ids, int64_t, int64_t>(), py::arg("ids"), py::arg("experts"),
           py::arg("position"), py::arg("pages"), py::arg("logits_from") = 0, py::arg("prompt") = 0);
  py::class_<Route>(m, "CpuRoute", "Consecutive tokens of one text to route; previous: -1 for none.")
      .def(py::init<Ids, int64_t, Ids, int64_t>(), py::arg("ids"), py::arg("position"), py::arg("pages"),
           py::arg("previous") = -1);
  py::class_<CpuPasses>(m, "CpuPasses", "A model packed for serving on the processor, without an engine around it.")
      .def(py::init(&Open), py::arg("folder"), py::arg("parent") = "", py::arg("format") = "f32",
           py::arg("threads") = 1, py::arg("context") = 0, py::arg("pages") = 64, py::arg("step_tokens") = 256)
      .def("run", &CpuPasses::RunPass, py::arg("runs"), "Logits [wanted tokens, V] and the cost of one pass.")
      .def("greedy", &CpuPasses::Greedy, py::arg("runs"),
           "Likeliest ids [wanted tokens, 1], -1 where logits are not finite, and the cost of one pass.")
      .def("route", &CpuPasses::RouteTokens, py::arg("runs"), "Experts uint8 [tokens].")
      .def("ffn_bytes", &CpuPasses::FfnBytes, py::arg("experts"))
      .def_property_readonly("fixed_bytes", &CpuPasses::FixedBytes)
      .def_property_readonly("shape", &CpuPasses::Shape);
}
