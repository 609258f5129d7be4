#include "moe/artifact.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <span>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "files/mapped_file.h"
#include "files/sha256.h"
#include "model/checkpoint.h"
#include "model/tensor_store.h"
#include "moe/adapter_file.h"
#include "moe/export.h"
#include "moe/routes.h"
#include "moe/tensor_file.h"

namespace outrider::moe {
namespace {

using nlohmann::json;

constexpr const char* kHeader = "/outrider.json";
constexpr const char* kMasks = "/outrider_masks.safetensors";
constexpr const char* kRouter = "/outrider_router.safetensors";
constexpr const char* kAdapter = "/outrider_adapter.safetensors";

bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

base::Result<json> ReadHeader(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  json root = json::parse(text, nullptr, false);
  const auto bad = [&](const std::string& what, const std::string& found, const std::string& expected) {
    return base::Fail("E_ARTIFACT", path + ": " + what + ": found " + found + ", expected " + expected);
  };
  if (!in.good() && text.empty()) return bad("header", "no such file", "the description of a refactored model");
  if (!root.is_object()) return bad("header", "no JSON object", "version, experts and router");
  const json version = root.value("version", json());
  if (version != 1) return bad("version", version.dump(), "1");
  const json experts = root.value("experts", json());
  if (!experts.is_number_integer() || experts < 1 || experts > kExpertsMax)
    return bad("experts", experts.dump(), "1 to " + std::to_string(kExpertsMax));
  if (const json tau = root.value("tau", json(0)); !tau.is_number() || tau < 0)
    return bad("tau", tau.dump(), "a number, not negative");
  return root;
}

// The checksum of a file, where the header has one.
base::Result<void> CheckSum(const json& header, const std::string& folder, const std::string& name) {
  const json files = header.value("files", json::object());
  const std::string key = name.substr(1);
  if (!files.is_object() || !files.contains(key)) return {};
  const auto file = files::MappedFile::Open(folder + name);
  if (!file) return tl::unexpected(file.error());
  files::Sha256 sum;
  sum.Add(file->Bytes());
  const std::string found = sum.Hex();
  if (files[key] == found) return {};
  return base::Fail("E_ARTIFACT", folder + name + ": sha256: found " + found + ", expected " + files[key].dump());
}

base::Result<RouterShape> ShapeOf(const json& header, const std::string& folder, int64_t vocab) {
  RouterShape shape{.vocab = vocab, .experts = header["experts"].get<int64_t>()};
  const auto bad = [&](const std::string& what, const std::string& found, const std::string& expected) {
    return base::Fail("E_ARTIFACT",
                      folder + kHeader + ": router." + what + ": found " + found + ", expected " + expected);
  };
  try {
    for (const auto& [name, value] : header.at("router").items()) {
      if (name == "width") {
        shape.width = value.get<int64_t>();
      } else if (name == "heads") {
        shape.heads = value.get<int64_t>();
      } else if (name == "scale") {
        if (value != "none" && value != "sqrt") return bad(name, value.dump(), "none or sqrt");
        shape.scale = value == "none" ? AttentionScale::kNone : AttentionScale::kSqrt;
      } else if (name == "embed") {
        if (value != "own" && value != "tied") return bad(name, value.dump(), "own or tied");
        shape.embedding = value == "own" ? RouterEmbedding::kOwn : RouterEmbedding::kTied;
      } else if (name == "attention") {
        shape.attention = value.get<bool>();
      } else if (name == "rope_base") {
        shape.rope_base = value.get<double>();
      } else {
        return bad(name, "an unknown field", "width, heads, scale, embed, attention, rope_base");
      }
    }
  } catch (const json::exception& error) {
    return bad("fields", error.what(), "the form of a router");
  }
  if (shape.width < 1 || shape.heads < 1 || shape.width % (2 * shape.heads) != 0)
    return bad("width", std::to_string(shape.width), "a multiple of twice the heads");
  return shape;
}

// Masks in the order of the model files, or of the parent.
base::Result<Masks> ReadMasks(const std::string& path, int64_t experts, const model::Config& config, bool parent) {
  const auto file = LoadTensors(path);
  if (!file) return tl::unexpected(file.error());
  const auto named = [&](const char* name) {
    const auto found = std::ranges::find(file->tensors, name, &NamedTensor::name);
    return found == file->tensors.end() ? at::Tensor() : found->tensor;
  };
  const auto bad = [&](const std::string& what, const std::string& expected) {
    return base::Fail("E_MASKS", path + ": " + what + ", expected " + expected);
  };
  const at::Tensor sig = named("sig"), perm = named("perm");
  const std::vector<int64_t> shape = {config.layers, config.ffn};
  if (!sig.defined() || sig.sizes() != at::IntArrayRef(shape))
    return bad("sig: found " + (sig.defined() ? model::ShapeText(sig.sizes()) : "none"), model::ShapeText(shape));
  if (sig.scalar_type() != at::kByte && sig.scalar_type() != at::kUInt16)
    return bad("sig: found another dtype", "U8 or U16");
  at::Tensor wide = sig.scalar_type() == at::kByte ? sig.to(at::kShort) : sig.view(at::kShort);
  const at::Tensor numbers = wide.to(at::kLong).bitwise_and(0xFFFF);
  if (numbers.max().item<int64_t>() >= int64_t{1} << experts)
    return bad("sig: found a bit of another expert", std::to_string(experts) + " experts");
  if (perm.defined()) {
    if (perm.sizes() != sig.sizes() || perm.scalar_type() != at::kInt ||
        !at::equal(std::get<0>(perm.to(at::kLong).sort(1)), at::arange(config.ffn).expand(shape)))
      return bad("perm: found something else", "each channel of a layer once, I32");
    if (parent) wide = at::zeros_like(wide).scatter_(1, perm.to(at::kLong), wide);
  }
  return MasksFrom(wide.contiguous(), experts);
}

struct Source {
  std::string weights;  // the model folder that they are read from
  bool parent = false;
  bool adapter = false;
};

base::Result<Source> SourceOf(const std::string& folder, const std::string& parent) {
  const bool own = Exists(folder + "/config.json"), adapter = Exists(folder + kAdapter);
  if (own && adapter) return base::Fail("E_ARTIFACT", folder + ": found weights and an adapter, expected one of them");
  if (own && !parent.empty())
    return base::Fail("E_MODEL", folder + ": found weights of its own, expected no parent (" + parent + ") then");
  if (!own && parent.empty())
    return base::Fail("E_MODEL", folder + ": found no weights, expected a parent: --parent DIR");
  return Source{own ? folder : parent, !own, adapter};
}

base::Result<void> AddAdapter(const std::string& folder, const std::string& parent, RoutedModel& model) {
  auto loaded = LoadAdapter(folder + kAdapter, model.config, model.device());
  if (!loaded) return tl::unexpected(loaded.error());
  const auto sum = model::WeightsSha256(parent);
  if (!sum) return tl::unexpected(sum.error());
  if (*sum != loaded->second.base_sha256) {
    return base::Fail("E_MODEL", parent + ": sha256 of the weights: found " + *sum + ", expected " +
                                     loaded->second.base_sha256 + ", beside which " + folder + kAdapter + " was tuned");
  }
  model.adapter = std::move(loaded->first);
  return {};
}

}  // namespace

base::Result<RoutedModel> OpenArtifact(const std::string& folder, const std::string& parent, at::ScalarType dtype,
                                       at::Device device) {
  const at::NoGradGuard no_grad;
  const auto header = ReadHeader(folder + kHeader);
  if (!header) return tl::unexpected(header.error());
  const auto source = SourceOf(folder, parent);
  if (!source) return tl::unexpected(source.error());
  const bool routed = header->contains("router");
  if (!routed && (*header)["experts"] != 1)
    return base::Fail("E_ARTIFACT", folder + kHeader + ": router: found none, expected one for several experts");
  for (const char* name : {kMasks, kRouter, kAdapter}) {
    if ((name == kRouter && !routed) || (name == kAdapter && !source->adapter)) continue;
    if (auto ok = CheckSum(*header, folder, name); !ok) return tl::unexpected(ok.error());
  }
  RoutedModel model;
  model.dtype = dtype;
  auto config = model::LoadConfig(source->weights);
  if (!config) return tl::unexpected(config.error());
  model.config = *std::move(config);
  auto weights = model::LoadParameters(source->weights, model.config, dtype, device);
  if (!weights) return tl::unexpected(weights.error());
  model.masters = *std::move(weights);
  auto masks = ReadMasks(folder + kMasks, (*header)["experts"].get<int64_t>(), model.config, source->parent);
  if (!masks) return tl::unexpected(masks.error());
  model.masks = *std::move(masks);
  model.tau = header->value("tau", 0.0);
  if (routed) {
    const auto shape = ShapeOf(*header, folder, model.config.vocab);
    if (!shape) return tl::unexpected(shape.error());
    auto file = LoadTensors(folder + kRouter);
    if (!file) return tl::unexpected(file.error());
    for (NamedTensor& t : file->tensors) t.tensor = t.tensor.to(device);
    auto router = Router::Load(*shape, file->tensors);
    if (!router) return base::Fail(router.error().code, folder + kRouter + ": " + router.error().message);
    model.router = *std::move(router);
    model.routing = Routing::kRouter;
  }
  if (source->adapter) {
    if (auto done = AddAdapter(folder, parent, model); !done) return tl::unexpected(done.error());
  }
  return model;
}

base::Result<void> MergeArtifact(const std::string& folder, const std::string& parent, const std::string& out,
                                 bool narrow) {
  auto header = ReadHeader(folder + kHeader);
  if (!header) return tl::unexpected(header.error());
  const auto model = OpenArtifact(folder, parent, at::kFloat, at::kCPU);
  if (!model) return tl::unexpected(model.error());
  header->erase("files");
  header->erase("adapter");
  return WriteModel(out, *model, narrow, *header);
}

void RoutedHook::OnTokens(const at::Tensor& ids, int64_t past) {
  if (!model_.router) return;
  const at::NoGradGuard no_grad;
  const int64_t texts = ids.size(0), count = ids.size(1);
  if (past == 0) {
    cache_ = {};
    tokens_ = 0;
    previous_.assign(static_cast<size_t>(texts), -1);
  }
  OUTRIDER_CHECK(past == tokens_ && texts == static_cast<int64_t>(previous_.size()), "found ", past,
                 " tokens before these, expected ", tokens_);
  const at::Tensor logits = model_.RouterLogits(ids, &cache_).to(at::kCPU).contiguous();
  const auto experts = logits.size(2);
  const auto row = static_cast<size_t>(count * experts);
  const std::span<const float> all(logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel()));
  std::vector<int64_t> chosen;
  for (size_t b = 0; b < previous_.size(); ++b) {
    const std::vector<int64_t> text = Route(all.subspan(b * row, row), experts, model_.tau, previous_[b]);
    previous_[b] = text.back();
    chosen.insert(chosen.end(), text.begin(), text.end());
  }
  tokens_ += count;
  ids_ = at::tensor(chosen, at::kLong).to(ids.device());
}

at::Tensor RoutedHook::OnHidden(int64_t layer, const at::Tensor& h) {
  const at::Tensor& masks = masking_.masks.at(static_cast<size_t>(layer));
  return ids_.defined() ? h * masks.index_select(0, ids_) : h * masks[0];
}

}  // namespace outrider::moe
