#include "serve_model.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/core/grad_mode.h>

#include "kernels/number.h"
#include "model/checkpoint.h"
#include "model/tensor_store.h"
#include "moe/artifact.h"
#include "moe/block_table.h"
#include "moe/tensor_file.h"
#include "serve/cpu/cpu_router.h"

namespace base = outrider::base;
namespace files = outrider::files;
namespace kernels = outrider::kernels;
namespace model = outrider::model;
namespace moe = outrider::moe;
namespace serve = outrider::serve;

namespace {

base::Result<kernels::Number> NumberNamed(const std::string& format) {
  if (format == "f32") return kernels::Number::kF32;
  if (format == "bf16") return kernels::Number::kBf16;
  if (format == "int8") return kernels::Number::kI8;
  return base::Fail("E_OPTION", "format: found " + format + ", expected f32, bf16 or int8");
}

// bf16 where all weights are stored so, which halves the memory that reading takes; else fp32.
base::Result<at::ScalarType> StoredType(const std::string& folder) {
  const auto store = model::TensorStore::Open(folder);
  if (!store) return tl::unexpected(store.error());
  const bool narrow = std::ranges::all_of(
      store->Tensors(), [](const auto& named) { return named.second.entry.dtype == files::Dtype::kBF16; });
  return narrow ? at::kBFloat16 : at::kFloat;
}

// Tensors as the packer reads them; keeps them alive.
class Source {
 public:
  void Add(const std::string& name, const at::Tensor& tensor) {
    const at::Tensor& kept = kept_.emplace_back(tensor.detach().contiguous());
    const auto dtype = kept.scalar_type() == at::kBFloat16 ? files::Dtype::kBF16 : files::Dtype::kF32;
    source_[name] = {dtype, kept.sizes().vec(), kept.const_data_ptr()};
  }
  const serve::WeightSource& source() const { return source_; }

 private:
  std::vector<at::Tensor> kept_;
  serve::WeightSource source_;
};

Source SourceOf(const model::Config& config, model::Parameters parameters) {
  Source source;
  for (const model::NamedTensor& t : model::NamedTensors(config, parameters)) source.Add(t.name, *t.tensor);
  return source;
}

serve::ExpertMap MapOf(const moe::Masks& masks) {
  serve::ExpertMap map{.experts = masks.experts(), .signatures = {}, .order = {}};
  for (int64_t l = 0; l < masks.layers(); ++l) {
    const auto layer = masks.Layer(l);
    map.signatures.emplace_back(layer.begin(), layer.end());
    map.order.push_back(moe::LayOut(masks, l, 1).permutation);
  }
  return map;
}

serve::RouterSpec SpecOf(const moe::RouterShape& shape, double tau) {
  return {.vocab = shape.vocab,
          .experts = shape.experts,
          .width = shape.width,
          .heads = shape.heads,
          .scale = shape.scale == moe::AttentionScale::kNone ? serve::ScoreScale::kNone : serve::ScoreScale::kSqrt,
          .table = shape.embedding == moe::RouterEmbedding::kOwn ? serve::RouterTable::kOwn : serve::RouterTable::kTied,
          .context = shape.attention ? serve::RouterContext::kCausal : serve::RouterContext::kToken,
          .rope_base = shape.rope_base,
          .tau = tau};
}

struct Opened {
  model::Config config;
  Source source;
  serve::ExpertMap experts;
  std::optional<serve::RouterSpec> router;
};

base::Result<Opened> OpenDense(const ServingOptions& options) {
  if (!options.parent.empty())
    return base::Fail("E_MODEL", options.folder + ": found a dense model, expected no parent (" + options.parent + ")");
  const auto config = model::LoadConfig(options.folder);
  if (!config) return tl::unexpected(config.error());
  const auto type = StoredType(options.folder);
  if (!type) return tl::unexpected(type.error());
  auto weights = model::LoadParameters(options.folder, *config, *type);
  if (!weights) return tl::unexpected(weights.error());
  return Opened{*config, SourceOf(*config, *std::move(weights)), {}, std::nullopt};
}

base::Result<Opened> OpenRouted(const ServingOptions& options) {
  const auto type = StoredType(options.parent.empty() ? options.folder : options.parent);
  if (!type) return tl::unexpected(type.error());
  auto routed = moe::OpenArtifact(options.folder, options.parent, *type, at::kCPU);
  if (!routed) return tl::unexpected(routed.error());
  Opened opened{routed->config, SourceOf(routed->config, routed->Copy(routed->adapter ? at::kFloat : *type)),
                MapOf(routed->masks), std::nullopt};
  if (!routed->router) return opened;
  opened.router = SpecOf(routed->router->shape(), routed->tau);
  for (const moe::NamedTensor& t : routed->router->Parameters()) opened.source.Add(t.name, t.tensor);
  return opened;
}

// Adds [L, N, d] and [L, N] as rows of all layers behind each other.
base::Result<void> AddLayerRouter(const std::string& path, Opened& opened) {
  if (opened.experts.experts < 2)
    return base::Fail("E_EXPERTS", path + ": found a model of one expert, expected several to choose from");
  const auto file = moe::LoadTensors(path);
  if (!file) return tl::unexpected(file.error());
  for (const moe::NamedTensor& t : file->tensors) {
    if (t.tensor.dim() < 2)
      return base::Fail("E_SHAPE", path + ": " + t.name + ": found " + std::to_string(t.tensor.dim()) +
                                       " dimensions, expected layers and experts first");
    opened.source.Add("layer_router." + t.name, t.tensor.flatten(0, 1));
  }
  opened.router.reset();
  return {};
}

}  // namespace

base::Result<ServedModel> OpenForServing(const ServingOptions& options) {
  const at::NoGradGuard no_grad;
  const auto number = NumberNamed(options.format);
  if (!number) return tl::unexpected(number.error());
  if (options.threads < 1)
    return base::Fail("E_OPTION", "threads: found " + std::to_string(options.threads) + ", expected at least 1");
  const bool routed = std::filesystem::exists(options.folder + "/outrider.json");
  auto opened = routed ? OpenRouted(options) : OpenDense(options);
  if (!opened) return tl::unexpected(opened.error());
  if (!options.layer_router.empty()) {
    if (auto added = AddLayerRouter(options.layer_router, *opened); !added) return tl::unexpected(added.error());
  }
  auto packed = serve::CpuModel::Pack(opened->config, opened->experts, opened->source.source(), *number);
  if (!packed) return tl::unexpected(packed.error());
  const auto workers = std::make_shared<kernels::Workers>(options.threads);
  auto executor = serve::CpuExecutor::Make(*std::move(packed), options.limits, workers);
  if (!executor) return tl::unexpected(executor.error());
  ServedModel served{opened->config, 0, *std::move(executor), nullptr};
  const serve::ModelShape& shape = served.executor->shape();
  if (shape.experts == 0) return served;
  if (!opened->router)
    return base::Fail("E_EXPERTS", options.folder + ": found " + std::to_string(shape.experts) +
                                       " experts and no router, expected one");
  served.tau = opened->router->tau;
  auto router =
      serve::CpuRouter::Make(*opened->router, opened->source.source(), opened->config.hidden_size, shape, workers);
  if (!router) return tl::unexpected(router.error());
  served.pregate = *std::move(router);
  return served;
}
