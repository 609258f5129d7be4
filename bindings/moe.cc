#include "moe.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moe/pipeline.h"
#include "moe/report.h"
#include "moe/signature_order.h"
#include "result.h"

namespace py = pybind11;
namespace moe = outrider::moe;

namespace {

py::dict ToDict(const moe::StepFacts& facts) {
  py::dict out;
  out["loss"] = facts.loss;
  out["nats"] = facts.nats;
  out["divergence"] = facts.divergence;
  out["gradient_norm"] = facts.gradient_norm;
  out["rate"] = facts.rate;
  out["tokens"] = facts.tokens;
  return out;
}

// progress: called with a dict behind every step; False stops the run behind a checkpoint, anything else goes on.
std::string Refactor(const std::string& options, const py::object& progress) {
  const moe::Options parsed = Unwrap(moe::ParseOptions(options));
  const moe::OnProgress report = [&progress](const moe::Progress& p) {
    const py::gil_scoped_acquire lock;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (progress.is_none()) return true;
    py::dict out = ToDict(p.facts);
    out["stage"] = p.stage;
    out["round"] = p.round;
    out["step"] = p.step;
    out["steps"] = p.steps;
    out["position"] = p.position;
    out["positions"] = p.positions;
    out["tokens_per_s"] = p.tokens_per_s;
    return !progress(out).is(py::bool_(false));
  };
  const py::gil_scoped_release unlocked;
  return Unwrap(moe::Refactor(parsed, report));
}

std::unique_ptr<moe::Workbench> Open(const std::string& options) {
  return std::make_unique<moe::Workbench>(Unwrap(moe::Workbench::Open(Unwrap(moe::ParseOptions(options)))));
}

moe::StageKind StageNamed(const std::string& name) {
  if (name != "router" && name != "expert") {
    throw py::value_error("error E_OPTION: stage: found " + name + ", expected router or expert");
  }
  return name == "router" ? moe::StageKind::kRouter : moe::StageKind::kExpert;
}

std::string Evaluate(moe::Workbench& bench, const std::string& split, bool all_channels, int64_t tokens) {
  if (split != "valid" && split != "test" && split != "unseen") {
    throw py::value_error("error E_OPTION: split: found " + split + ", expected valid, test or unseen");
  }
  return moe::ToJson(
      Unwrap(bench.Evaluate(split, all_channels ? moe::EvalMode::kDense : moe::EvalMode::kRefactored, tokens)));
}

using PlainQuery = std::pair<std::vector<int64_t>, std::vector<std::vector<int64_t>>>;
using PlainAnswers = std::vector<std::vector<std::pair<double, bool>>>;

PlainAnswers Score(const moe::Workbench& bench, const std::vector<PlainQuery>& queries, bool all_channels) {
  std::vector<moe::TextQuery> batch;
  for (const auto& [inputs, targets] : queries) batch.push_back({inputs, targets});
  const auto answers = Unwrap(bench.Score(batch, all_channels ? moe::EvalMode::kDense : moe::EvalMode::kRefactored));
  PlainAnswers out;
  for (const auto& row : answers) {
    auto& plain = out.emplace_back();
    for (const moe::TextAnswer& answer : row) plain.emplace_back(answer.log_probability, answer.greedy);
  }
  return out;
}

std::vector<std::vector<moe::Signature>> Signatures(const moe::Workbench& bench) {
  std::vector<std::vector<moe::Signature>> layers;
  for (int64_t l = 0; l < bench.masks().layers(); ++l) {
    layers.emplace_back(bench.masks().Layer(l).begin(), bench.masks().Layer(l).end());
  }
  return layers;
}

}  // namespace

void DefineMoe(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("refactor", &Refactor, py::arg("options"), py::arg("progress") = py::none(),
        "Runs or resumes a refactoring; options and result are JSON texts. progress(dict) -> False stops it.");
  m.def(
      "refactor_options", [](const std::string& json) { return moe::ToJson(Unwrap(moe::ParseOptions(json))); },
      py::arg("options"), "The options with every default filled in, as JSON text.");
  m.def("signature_order", &moe::BalancedOrder, py::arg("experts"),
        "All signatures of 1 to 8 experts in stored order.");
  py::class_<moe::Workbench>(m, "Workbench", "One refactoring in memory, stage by stage.")
      .def_static("open", &Open, py::arg("options"), unlocked)
      .def(
          "make_experts", [](moe::Workbench& b) { return moe::ToJson(Unwrap(b.MakeExperts())); }, unlocked,
          "Calibrates and chooses the experts; JSON text of what was found.")
      .def(
          "step",
          [](moe::Workbench& b, const std::string& stage, int64_t round, int64_t step, int64_t steps) {
            const moe::StageKind kind = StageNamed(stage);
            const auto facts = [&] {
              const py::gil_scoped_release released;
              return Unwrap(b.Step(kind, round, step, steps));
            }();
            return ToDict(facts);
          },
          py::arg("stage"), py::arg("round"), py::arg("step"), py::arg("steps"))
      .def("evaluate", &Evaluate, py::arg("split"), py::arg("all_channels") = false, py::arg("tokens") = 65536,
           unlocked, "Loss per domain and document, JSON text.")
      .def("score", &Score, py::arg("queries"), py::arg("all_channels") = false, unlocked,
           "One batch of (ids, [target ids, ...]) -> per query and target (log-probability in nats, greedy).")
      .def(
          "save", [](const moe::Workbench& b, const std::string& path, int64_t at) { Unwrap(b.Save(path, at)); },
          py::arg("path"), py::arg("position") = 0, unlocked)
      .def(
          "restore", [](moe::Workbench& b, const std::string& path) { return Unwrap(b.Restore(path)); },
          py::arg("path"), unlocked)
      .def(
          "export_adapter", [](const moe::Workbench& b, const std::string& folder) { Unwrap(b.ExportAdapter(folder)); },
          py::arg("folder"), unlocked, "adapter, masks in the parent's order and router, without the parent")
      .def(
          "export", [](const moe::Workbench& b, const std::string& folder) { Unwrap(b.Export(folder)); },
          py::arg("folder"), unlocked)
      .def(
          "router_logits",
          [](const moe::Workbench& b, const std::vector<int64_t>& ids) { return Unwrap(b.RouterLogits(ids)); },
          py::arg("ids"), unlocked, "Logits of one text, token after token, [S * experts].")
      .def("signatures", &Signatures, "Signature of every channel, [layers][channels] in the parent's order.");
}
