#include "serve_model.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include "kernels/engine.h"
#include "kernels/number.h"
#include "model/checkpoint.h"
#include "model/tensor_store.h"
#include "moe/artifact.h"
#include "moe/block_table.h"
#include "moe/tensor_file.h"
#include "serve/cpu/cpu_router.h"
#include "serve_gpu/gpu_executor.h"
#include "serve_gpu/kv_memory.h"
#include "serve_gpu/router_device.h"

namespace base = outrider::base;
namespace files = outrider::files;
namespace kernels = outrider::kernels;
namespace model = outrider::model;
namespace moe = outrider::moe;
namespace serve = outrider::serve;
namespace serve_gpu = outrider::serve_gpu;

namespace {

constexpr int64_t kCpuPages = 16'384 / kernels::kPageTokens;  // where nobody says how many
constexpr int64_t kRoutePagesEach = 2;                        // likewise, for each page of the backbone

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

// Tensors on the CPU, as they are stored or merged.
struct Opened {
  model::Config config;
  model::Parameters parameters;
  serve::ExpertMap experts;
  std::optional<serve::RouterSpec> router;
  Source router_source;
  std::vector<moe::NamedTensor> layer_router;

  // Those of the backbone, and of routers in its layers; a tied head is no tensor of its own.
  Source Backbone() {
    Source source;
    for (const model::NamedTensor& t : model::NamedTensors(config, parameters)) source.Add(t.name, *t.tensor);
    for (const moe::NamedTensor& t : layer_router) source.Add(t.name, t.tensor);
    return source;
  }
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
  return Opened{*config, *std::move(weights), {}, std::nullopt, {}, {}};
}

base::Result<Opened> OpenRouted(const ServingOptions& options) {
  const auto type = StoredType(options.parent.empty() ? options.folder : options.parent);
  if (!type) return tl::unexpected(type.error());
  auto routed = moe::OpenArtifact(options.folder, options.parent, *type, at::kCPU);
  if (!routed) return tl::unexpected(routed.error());
  Opened opened{
      routed->config, routed->Copy(routed->adapter ? at::kFloat : *type), MapOf(routed->masks), std::nullopt, {}, {}};
  if (!routed->router) return opened;
  opened.router = SpecOf(routed->router->shape(), routed->tau);
  for (const moe::NamedTensor& t : routed->router->Parameters()) opened.router_source.Add(t.name, t.tensor);
  opened.router_source.Add("model.embed_tokens.weight", opened.parameters.embed);
  return opened;
}

void CompleteRoutePages(serve::PassLimits& limits) {
  if (limits.route_pages == 0) limits.route_pages = kRoutePagesEach * limits.kv_pages;
}

using Made = base::Result<std::unique_ptr<serve::Executor>>;

Made OnCpu(Opened& opened, kernels::Number number, serve::PassLimits limits,
           const std::shared_ptr<kernels::Workers>& workers) {
  if (limits.kv_pages == 0) limits.kv_pages = kCpuPages;
  CompleteRoutePages(limits);
  const Source backbone = opened.Backbone();
  auto packed = serve::CpuModel::Pack(opened.config, opened.experts, backbone.source(), number);
  if (!packed) return tl::unexpected(packed.error());
  return serve::CpuExecutor::Make(*std::move(packed), limits, workers);
}

// What the host holds of the weights is gone then, but for what the router needs.
base::Result<serve_gpu::GpuModel> PackOnDevice(Opened& opened, at::ScalarType type, const std::string& device) {
  auto packed = serve_gpu::GpuModel::Pack(opened.config, opened.experts, opened.parameters,
                                          at::Device(device == "cuda" ? at::kCUDA : at::kCPU), type);
  if (packed) opened.parameters = {};
  return packed;
}

// What the router takes of the memory that is free, too.
serve_gpu::KvBudget BudgetOf(const std::optional<serve::RouterSpec>& router, const ServingOptions& options) {
  serve_gpu::KvBudget budget{.pages = options.limits.kv_pages,
                             .free_bytes = serve_gpu::CudaFactsNow().free_bytes,
                             .percent = options.kv_memory_percent,
                             .texts_max = options.texts_max};
  if (!router) return budget;
  const int64_t pages = options.limits.route_pages, page = serve_gpu::RouterPageBytes(*router);
  budget.beside_bytes = serve_gpu::RouterBytes(*router) + pages * page;
  budget.beside_page_bytes = pages == 0 ? kRoutePagesEach * page : 0;
  return budget;
}

Made OnDevice(const serve_gpu::GpuModel& packed, const std::optional<serve::RouterSpec>& router,
              const ServingOptions& options) {
  serve::PassLimits limits = options.limits;
  if (packed.device().is_cuda()) {
    const auto pages = serve_gpu::KvPages(packed.config(), static_cast<int64_t>(c10::elementSize(packed.dtype())),
                                          BudgetOf(router, options));
    if (!pages) return tl::unexpected(pages.error());
    limits.kv_pages = *pages;
  } else if (limits.kv_pages == 0) {
    limits.kv_pages = kCpuPages;
  }
  CompleteRoutePages(limits);
  return serve_gpu::GpuExecutor::Make(packed, limits, {});
}

// What `call` returns, or what a device that runs out of memory or fails says.
template <class Call>
auto OrWhyNot(const std::string& device, const Call& call) -> decltype(call()) {
  try {
    return call();
  } catch (const c10::OutOfMemoryError& error) {
    return base::Fail("E_MEMORY", "device " + device + ": found too little free memory, expected room for the " +
                                      "weights, keys and values; free some, lower kv_memory_percent or kv_tokens, or " +
                                      "serve with the device cpu (" + error.what_without_backtrace() + ")");
  } catch (const c10::Error& error) {
    return base::Fail("E_CUDA", "device " + device + ": " + error.what_without_backtrace());
  }
}

// What can be refused before any weight is read.
base::Result<void> CheckDevice(const ServingOptions& options) {
  if (options.device != "cpu" && options.device != "cuda" && options.device != "reference")
    return base::Fail("E_OPTION", "device: found " + options.device + ", expected cpu or cuda");
  if (options.threads < 1)
    return base::Fail("E_OPTION", "threads: found " + std::to_string(options.threads) + ", expected at least 1");
  if (options.device == "cpu") return {};
  if (!options.layer_router.empty())
    return base::Fail("E_OPTION", "device: found " + options.device + ", expected cpu for a router in every layer");
  if (options.format == "int8" || (options.device == "cuda" && options.format == "f32"))
    return base::Fail("E_OPTION", "weights: found " + options.format + ", expected bf16 with the device " +
                                      options.device + ", or the device cpu");
  if (options.device != "cuda") return {};
  if (auto ok = serve_gpu::CheckCuda(); !ok) return ok;
  const auto config = model::LoadConfig(options.parent.empty() ? options.folder : options.parent);
  if (!config) return tl::unexpected(config.error());
  return serve_gpu::CheckCudaShape(*config);
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
    opened.layer_router.push_back({"layer_router." + t.name, t.tensor.flatten(0, 1)});
  }
  opened.router.reset();
  return {};
}

}  // namespace

struct LoadedModel {
  std::string folder, device, format;  // format: f32, bf16 or int8
  kernels::Number number = kernels::Number::kF32;
  Opened opened;
  std::optional<serve_gpu::GpuModel> packed;  // not on the CPU, where each executor packs for itself
};

base::Result<std::shared_ptr<LoadedModel>> LoadForServing(const ServingOptions& options) {
  const at::NoGradGuard no_grad;
  if (auto ok = CheckDevice(options); !ok) return tl::unexpected(ok.error());
  const std::string format = !options.format.empty() ? options.format : options.device == "cuda" ? "bf16" : "f32";
  const auto number = NumberNamed(format);
  if (!number) return tl::unexpected(number.error());
  auto opened = std::filesystem::exists(options.folder + "/outrider.json") ? OpenRouted(options) : OpenDense(options);
  if (!opened) return tl::unexpected(opened.error());
  if (!options.layer_router.empty()) {
    if (auto added = AddLayerRouter(options.layer_router, *opened); !added) return tl::unexpected(added.error());
  }
  if (options.device == "cuda" && opened->router) {
    if (auto fits = serve_gpu::CheckCudaRouter(*opened->router); !fits) return tl::unexpected(fits.error());
  }
  auto loaded = std::make_shared<LoadedModel>(options.folder, options.device, format, *number, *std::move(opened));
  if (options.device == "cpu") return loaded;
  const at::ScalarType type = format == "bf16" ? at::kBFloat16 : at::kFloat;
  auto packed = OrWhyNot(options.device, [&] { return PackOnDevice(loaded->opened, type, options.device); });
  if (!packed) return tl::unexpected(packed.error());
  loaded->packed = *std::move(packed);
  return loaded;
}

namespace {

// Where the backbone is served.
base::Result<std::unique_ptr<serve::Pregate>> RouterFor(const LoadedModel& loaded, const serve::ModelShape& shape,
                                                        const std::shared_ptr<kernels::Workers>& workers) {
  const serve::RouterSpec& spec = *loaded.opened.router;
  const serve::WeightSource& source = loaded.opened.router_source.source();
  const int64_t width = loaded.opened.config.hidden_size;
  if (!loaded.packed || !loaded.packed->device().is_cuda())
    return serve::CpuRouter::Make(spec, source, width, shape, workers);
  if (auto fits = serve::CheckRouter(spec, width, shape); !fits) return tl::unexpected(fits.error());
  const auto weights = serve::ReadRouter(spec, source, width);
  if (!weights) return tl::unexpected(weights.error());
  auto device = serve_gpu::MakeCudaRouter(spec, *weights, shape, loaded.packed->device().index());
  if (!device) return tl::unexpected(device.error());
  return std::make_unique<serve::StagedRouter>(spec, shape, *std::move(device));
}

}  // namespace

base::Result<ServedModel> Serve(LoadedModel& loaded, const ServingOptions& options) {
  const at::NoGradGuard no_grad;
  Opened& opened = loaded.opened;
  const auto workers = std::make_shared<kernels::Workers>(options.threads);
  Made executor = loaded.packed
                      ? OrWhyNot(loaded.device, [&] { return OnDevice(*loaded.packed, opened.router, options); })
                      : OnCpu(opened, loaded.number, options.limits, workers);
  if (!executor) return tl::unexpected(executor.error());
  ServedModel served{opened.config, 0, loaded.device, loaded.format, *std::move(executor), nullptr, workers};
  if (loaded.device == "cuda") served.device += " (" + serve_gpu::CudaFactsNow().name + ")";
  const serve::ModelShape& shape = served.executor->shape();
  if (shape.experts == 0) return served;
  if (!opened.router)
    return base::Fail("E_EXPERTS", loaded.folder + ": found " + std::to_string(shape.experts) +
                                       " experts and no router, expected one");
  served.tau = opened.router->tau;
  auto router = RouterFor(loaded, shape, workers);
  if (!router) return tl::unexpected(router.error());
  served.pregate = *std::move(router);
  return served;
}

base::Result<ServedModel> OpenForServing(const ServingOptions& options) {
  const auto loaded = LoadForServing(options);
  if (!loaded) return tl::unexpected(loaded.error());
  return Serve(**loaded, options);
}
