#include "model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "model/checkpoint.h"
#include "model/generate.h"
#include "model/llama.h"
#include "model/sample_texts.h"
#include "model/tensor_store.h"
#include "moe/artifact.h"
#include "result.h"

namespace py = pybind11;
namespace model = outrider::model;
namespace moe = outrider::moe;

namespace {

struct Model {
  model::Config config;
  model::Parameters parameters;  // what the model computes with, adapter included
  // Of a refactored model: experts and router.
  std::optional<moe::RoutedModel> routed;
  moe::RoutedModel::Masking masking;

  // What runs the experts during one call; nullptr for a dense model.
  std::unique_ptr<moe::RoutedHook> Hook() const {
    return routed ? std::make_unique<moe::RoutedHook>(*routed, masking) : nullptr;
  }

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
  at::Tensor Hidden(const at::Tensor& ids) const {
    const auto hook = Hook();
    return model::HiddenStates(config, parameters, OnDevice(ids), hook.get());
  }
  at::Tensor Logits(const at::Tensor& ids) const { return model::Logits(config, parameters, Hidden(ids)); }
};

std::unique_ptr<Model> Load(const std::string& folder, const std::string& dtype, const std::string& device) {
  auto loaded = std::make_unique<Model>();
  const at::ScalarType type = Unwrap(model::DtypeNamed(dtype));
  loaded->config = Unwrap(model::LoadConfig(folder));
  loaded->parameters = Unwrap(model::LoadParameters(folder, loaded->config, type, at::Device(device)));
  return loaded;
}

std::unique_ptr<Model> LoadRouted(const std::string& folder, const std::string& parent, const std::string& dtype,
                                  const std::string& device) {
  auto loaded = std::make_unique<Model>();
  const at::ScalarType type = Unwrap(model::DtypeNamed(dtype));
  loaded->routed = Unwrap(moe::OpenArtifact(folder, parent, type, at::Device(device)));
  loaded->config = loaded->routed->config;
  const at::NoGradGuard no_grad;
  loaded->parameters = loaded->routed->ComputeCopy();
  loaded->masking = loaded->routed->Prepare();
  return loaded;
}

// Experts of the tokens, int64 [B, S].
at::Tensor ExpertIds(const Model& self, const at::Tensor& ids) {
  if (!self.routed || !self.routed->router) {
    throw py::value_error("error E_MODEL: expert_ids: found a model without a router, expected a refactored one");
  }
  const auto hook = self.Hook();
  hook->OnTokens(self.OnDevice(ids), 0);
  return hook->Ids().view(ids.sizes());
}

// Positions in pieces of the given sizes, each behind the cache of those before it.
at::Tensor CachedLogits(const Model& self, const at::Tensor& given, const std::vector<int64_t>& pieces) {
  const at::Tensor ids = self.OnDevice(given);
  model::KvCache cache(self.config, ids.size(0), ids.size(1), self.parameters.embed);
  const auto hook = self.Hook();
  std::vector<at::Tensor> parts;
  for (int64_t count : pieces) {
    const int64_t first = cache.Length();
    if (count < 1 || first + count > ids.size(1)) throw py::value_error("error E_IDS: pieces do not fit the tokens");
    const at::Tensor piece = ids.slice(1, first, first + count);
    parts.push_back(model::Logits(self.config, self.parameters,
                                  model::HiddenStates(self.config, self.parameters, piece, cache, hook.get())));
  }
  return at::cat(parts, 1);
}

// Calls on_id(id) for each new id; a false answer ends the text. -> why it ended.
std::string Generate(const Model& self, const std::vector<int64_t>& prompt, const py::function& on_id,
                     int64_t new_tokens_max, const std::vector<int64_t>& stop_ids, const model::Sampling& sampling) {
  static constexpr const char* kReasons[] = {"length", "end_id", "callback", "context_full"};
  const auto forward = [&on_id](int64_t id) {
    const py::gil_scoped_acquire lock;
    const py::object answer = on_id(id);
    return answer.is_none() || py::cast<bool>(answer);
  };
  const py::gil_scoped_release unlocked;
  const auto hook = self.Hook();
  auto reason =
      model::Generate(self.config, self.parameters, prompt, {new_tokens_max, stop_ids, sampling}, forward, hook.get());
  return kReasons[static_cast<size_t>(Unwrap(std::move(reason)))];
}

// Calls on_text(number, ids, turns) for each text, in order; a false answer ends the run.
void SampleTexts(const Model& self, const model::TextPlan& plan, const model::Sampling& sampling,
                 const model::SamplingRun& run, const py::function& on_text) {
  if (self.routed) throw py::value_error("error E_MODEL: sample_texts: found experts, expected a dense model");
  const auto forward = [&on_text](const model::SampledText& text) {
    const py::gil_scoped_acquire lock;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    const py::object answer = on_text(text.number, text.ids, text.turns);
    return answer.is_none() || py::cast<bool>(answer);
  };
  const py::gil_scoped_release unlocked;
  Unwrap(model::SampleTexts(self.config, self.parameters, plan, sampling, run, forward));
}

py::dict ParametersByName(Model& self) {
  py::dict out;
  for (const auto& tensor : model::NamedTensors(self.config, self.parameters))
    out[py::str(tensor.name)] = *tensor.tensor;
  return out;
}

void Save(const Model& self, const std::string& folder, const std::string& dtype, int64_t shard_bytes_max) {
  Unwrap(
      model::SaveParameters(folder, self.config, self.parameters, {shard_bytes_max, Unwrap(model::DtypeNamed(dtype))}));
}

void DefineFiles(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def(
      "weights_sha256", [](const std::string& folder) { return Unwrap(model::WeightsSha256(folder)); },
      py::arg("folder"), unlocked, "of the weights of a model folder, whatever files they lie in");
  m.def(
      "merge_artifact",
      [](const std::string& folder, const std::string& parent, const std::string& out, const std::string& dtype) {
        if (dtype != "bfloat16" && dtype != "float32") {
          throw py::value_error("error E_DTYPE: dtype: found " + dtype + ", expected bfloat16 or float32");
        }
        Unwrap(moe::MergeArtifact(folder, parent, out, dtype == "bfloat16"));
      },
      py::arg("folder"), py::arg("parent"), py::arg("out"), py::arg("dtype") = "bfloat16", unlocked,
      "writes a refactored model with weights of its own, adapter merged, into the new folder `out`");
}

}  // namespace

void DefineModel(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  DefineFiles(m);
  py::class_<Model>(m, "Model",
                    "A Llama, Qwen2 or Mistral model, dense or refactored; weights as in its Hugging Face folder.")
      .def_static("load", &Load, py::arg("folder"), py::arg("dtype") = "float32", py::arg("device") = "cpu", unlocked)
      .def_static("load_routed", &LoadRouted, py::arg("folder"), py::arg("parent") = "", py::arg("dtype") = "float32",
                  py::arg("device") = "cpu", unlocked,
                  "a refactored model whose tokens run their experts; parent: for a folder without weights")
      .def("expert_ids", &ExpertIds, py::arg("ids"), unlocked, "ids int64 [B, S] -> the experts of the tokens [B, S]")
      .def("hidden", &Model::Hidden, py::arg("ids"), unlocked, "ids int64 [B, S] -> [B, S, hidden] after the norm")
      .def("logits", &Model::Logits, py::arg("ids"), unlocked, "ids int64 [B, S] -> [B, S, vocab]")
      .def("cached_logits", &CachedLogits, py::arg("ids"), py::arg("pieces"), unlocked,
           "the same, `pieces` tokens at a time behind cached keys and values")
      .def("save", &Save, py::arg("folder"), py::arg("dtype") = "bfloat16",
           py::arg("shard_bytes_max") = int64_t{4} << 30, unlocked,
           "writes the weights, not the config, into an existing folder")
      .def(
          "generate",
          [](const Model& self, const std::vector<int64_t>& prompt, const py::function& on_id, int64_t new_tokens_max,
             const std::vector<int64_t>& stop_ids, double temperature, int64_t top_k, double top_p, uint64_t seed) {
            return Generate(self, prompt, on_id, new_tokens_max, stop_ids, {temperature, top_k, top_p, seed});
          },
          py::arg("prompt"), py::arg("on_id"), py::arg("new_tokens_max") = 128,
          py::arg("stop_ids") = std::vector<int64_t>{}, py::arg("temperature") = 0.0, py::arg("top_k") = 0,
          py::arg("top_p") = 1.0, py::arg("seed") = 0,
          "calls on_id(id) for each new id, False ends the text -> length, end_id, callback or context_full")
      .def(
          "sample_texts",
          [](const Model& self, std::vector<std::vector<int64_t>> prompts,
             const std::vector<std::tuple<std::vector<int64_t>, std::vector<int64_t>, double>>& turns,
             const py::function& on_text, int64_t texts, int64_t length, double temperature, int64_t top_k,
             double top_p, uint64_t seed, int64_t rows, int64_t window) {
            model::TextPlan plan{
                .prompts = std::move(prompts), .turns = {}, .length = length, .texts = texts, .seed = seed};
            for (const auto& [end_ids, tail, heat] : turns) plan.turns.push_back({end_ids, tail, heat});
            SampleTexts(self, plan, {temperature, top_k, top_p, 0}, {rows, window}, on_text);
          },
          py::arg("prompts"), py::arg("turns"), py::arg("on_text"), py::arg("texts"), py::arg("length") = 512,
          py::arg("temperature") = 1.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("seed") = 0,
          py::arg("rows") = 64, py::arg("window") = 0,
          "writes many texts at once; turns: (end ids, tail, temperature or 0) each; calls on_text(number, ids, turns "
          "ended) in order, "
          "False ends the run")
      .def("parameters", &ParametersByName,
           "the weights themselves by their Hugging Face names; a tied head is not one")
      .def(
          "config_json", [](const Model& self, const std::string& dtype) { return model::ToJson(self.config, dtype); },
          py::arg("dtype") = "bfloat16", "the text of config.json for weights of that dtype")
      .def_property_readonly("end_ids", [](const Model& self) { return self.config.end_ids; })
      .def_property_readonly("max_positions", [](const Model& self) { return self.config.max_positions; })
      .def_property_readonly("vocab", [](const Model& self) { return self.config.vocab; });
}
