// Weights: their names and shapes, random ones, and those from and to files.

#include "model/checkpoint.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/normal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "files/atomic_file.h"
#include "files/safetensors.h"
#include "model/tensor_store.h"

namespace outrider::model {
namespace {

using files::Dtype;

constexpr double kInitialDeviation = 0.02;
constexpr size_t kNamesMax = 8;  // of a list in a message
constexpr std::array<std::pair<Dtype, at::ScalarType>, 4> kDtypes = {
    {{Dtype::kBF16, at::kBFloat16}, {Dtype::kF16, at::kHalf}, {Dtype::kF32, at::kFloat}, {Dtype::kF64, at::kDouble}}};

auto Bad(std::string message) { return base::Fail("E_TENSORS", std::move(message)); }

std::string List(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kNamesMax); ++i) text += (i > 0 ? ", " : "") + names[i];
  if (names.size() > kNamesMax) text += " and " + std::to_string(names.size() - kNamesMax) + " more";
  return text;
}

// Older exports carry the rotary frequencies, which the config gives, and tied models sometimes their head.
bool IsRedundant(const std::string& name, const StoredTensor& tensor, const Config& config, const TensorStore& store) {
  if (name.ends_with(".rotary_emb.inv_freq")) return true;
  if (name != "lm_head.weight" || !config.tied) return false;
  const auto embed = store.Tensors().find("model.embed_tokens.weight");
  return embed != store.Tensors().end() && embed->second.bytes.size() == tensor.bytes.size() &&
         std::memcmp(embed->second.bytes.data(), tensor.bytes.data(), tensor.bytes.size()) == 0;
}

base::Result<void> CheckNames(const std::vector<NamedTensor>& wanted, const Config& config, const TensorStore& store) {
  std::vector<std::string> missing, extra;
  std::set<std::string> names;
  for (const auto& tensor : wanted) {
    names.insert(tensor.name);
    if (!store.Tensors().contains(tensor.name)) missing.push_back(tensor.name);
  }
  for (const auto& [name, tensor] : store.Tensors()) {
    if (!names.contains(name) && !IsRedundant(name, tensor, config, store)) extra.push_back(name);
  }
  if (missing.empty() && extra.empty()) return {};
  std::string text = store.Root() + ": ";
  if (!missing.empty()) text += "missing tensors: " + List(missing);
  if (!extra.empty()) text += (missing.empty() ? "" : "; ") + ("tensors that the config does not give: " + List(extra));
  return Bad(text);
}

base::Result<at::Tensor> Load(const StoredTensor& stored, const NamedTensor& wanted, at::ScalarType dtype,
                              at::Device device) {
  const auto bad = [&](const std::string& found, const std::string& expected) {
    return Bad(stored.file + ": " + wanted.name + ": found " + found + ", expected " + expected);
  };
  if (stored.entry.shape != wanted.shape) return bad("shape " + ShapeText(stored.entry.shape), ShapeText(wanted.shape));
  const auto known =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& pair) { return pair.first == stored.entry.dtype; });
  if (known == kDtypes.end()) return bad("dtype " + std::string(NameOf(stored.entry.dtype)), "BF16, F16, F32 or F64");
  if (const auto broken = FindNonFinite(stored)) {
    return base::Fail("E_NAN", stored.file + ": " + wanted.name + ": found " + std::to_string(broken->count) +
                                   " values that are NaN or infinite, the first at index " +
                                   std::to_string(broken->first) + ", expected finite numbers");
  }
  at::Tensor tensor = at::empty(stored.entry.shape, at::TensorOptions().dtype(known->second));
  // The bytes in the file need not be aligned for their dtype.
  std::memcpy(tensor.mutable_data_ptr(), stored.bytes.data(), stored.bytes.size());
  return tensor.to(at::TensorOptions().dtype(dtype).device(device));
}

struct Shard {
  std::vector<files::TensorEntry> entries;
  std::vector<at::Tensor> tensors;  // on any device, in any dtype
  int64_t bytes = 0;
};

// Tensors in their order; a file is closed before it would grow beyond the limit.
std::vector<Shard> Divide(const std::vector<NamedTensor>& tensors, const SaveOptions& options) {
  const auto stored =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& pair) { return pair.second == options.dtype; });
  OUTRIDER_CHECK(stored != kDtypes.end(), "a dtype that checkpoints do not have");
  std::vector<Shard> shards(1);
  for (const auto& [name, tensor, shape] : tensors) {
    OUTRIDER_CHECK(tensor->sizes() == at::IntArrayRef(shape), name, ": shape ", ShapeText(tensor->sizes()),
                   " instead of ", ShapeText(shape));
    const int64_t bytes = tensor->numel() * static_cast<int64_t>(BytesOf(stored->first));
    if (shards.back().bytes > 0 && shards.back().bytes + bytes > options.shard_bytes_max) shards.emplace_back();
    Shard& shard = shards.back();
    shard.entries.push_back({name, stored->first, shape});
    shard.tensors.push_back(*tensor);
    shard.bytes += bytes;
  }
  return shards;
}

base::Result<void> WriteShard(const std::string& path, Shard& shard, at::ScalarType dtype, files::Disk& disk) {
  const std::string header = files::WriteHeader(shard.entries, {{"format", "pt"}});
  const uint64_t length = header.size();
  auto file = files::AtomicFile::Create(path, disk);
  if (!file) return tl::unexpected(file.error());
  if (auto done = file->Write(std::as_bytes(std::span(&length, 1))); !done) return done;
  if (auto done = file->Write(header); !done) return done;
  for (const at::Tensor& tensor : shard.tensors) {
    const at::Tensor plain = tensor.detach().to(at::TensorOptions().dtype(dtype).device(at::kCPU)).contiguous();
    if (auto done = file->Write({static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()}); !done)
      return done;
  }
  return file->Commit();
}

// "model-00002-of-00007.safetensors", counted from one.
std::string ShardName(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return text.data();
}

base::Result<void> WriteIndex(const std::string& path, const std::vector<Shard>& shards, files::Disk& disk) {
  nlohmann::json map, root;
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    total += shards[i].bytes;
    for (const auto& entry : shards[i].entries) map[entry.name] = ShardName(i, shards.size());
  }
  root["metadata"] = {{"total_size", total}};
  root["weight_map"] = map;
  auto file = files::AtomicFile::Create(path, disk);
  if (!file) return tl::unexpected(file.error());
  if (auto done = file->Write(root.dump(2) + "\n"); !done) return done;
  return file->Commit();
}

}  // namespace

std::vector<NamedTensor> NamedTensors(const Config& config, Parameters& parameters) {
  std::vector<NamedTensor> all;
  const int64_t d = config.hidden_size, q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  all.push_back({"model.embed_tokens.weight", &parameters.embed, {config.vocab, d}});
  parameters.layers.resize(static_cast<size_t>(config.layers));
  for (int64_t i = 0; i < config.layers; ++i) {
    Layer& layer = parameters.layers[i];
    const std::string place = "model.layers." + std::to_string(i) + ".";
    const auto add = [&](const char* name, at::Tensor& tensor, std::vector<int64_t> shape) {
      all.push_back({place + name, &tensor, std::move(shape)});
    };
    add("input_layernorm.weight", layer.attn_norm, {d});
    add("self_attn.q_proj.weight", layer.q, {q, d});
    add("self_attn.k_proj.weight", layer.k, {kv, d});
    add("self_attn.v_proj.weight", layer.v, {kv, d});
    add("self_attn.o_proj.weight", layer.o, {d, q});
    if (config.qkv_bias) {
      add("self_attn.q_proj.bias", layer.q_bias, {q});
      add("self_attn.k_proj.bias", layer.k_bias, {kv});
      add("self_attn.v_proj.bias", layer.v_bias, {kv});
    }
    if (config.o_bias) add("self_attn.o_proj.bias", layer.o_bias, {d});
    add("post_attention_layernorm.weight", layer.ffn_norm, {d});
    add("mlp.gate_proj.weight", layer.gate, {config.ffn, d});
    add("mlp.up_proj.weight", layer.up, {config.ffn, d});
    add("mlp.down_proj.weight", layer.down, {d, config.ffn});
    if (!config.mlp_bias) continue;
    add("mlp.gate_proj.bias", layer.gate_bias, {config.ffn});
    add("mlp.up_proj.bias", layer.up_bias, {config.ffn});
    add("mlp.down_proj.bias", layer.down_bias, {d});
  }
  all.push_back({"model.norm.weight", &parameters.norm, {d}});
  if (!config.tied) all.push_back({"lm_head.weight", &parameters.head, {config.vocab, d}});
  return all;
}

Parameters RandomParameters(const Config& config, uint64_t seed) {
  Parameters parameters;
  const auto generator = at::detail::createCPUGenerator(seed);
  const auto options = at::TensorOptions().dtype(at::kFloat);
  for (auto& [name, tensor, shape] : NamedTensors(config, parameters)) {
    if (shape.size() == 2) {
      *tensor = at::normal(0.0, kInitialDeviation, shape, generator, options);
    } else {
      *tensor = name.ends_with(".bias") ? at::zeros(shape, options) : at::ones(shape, options);
    }
  }
  if (config.tied) parameters.head = parameters.embed;
  return parameters;
}

base::Result<Parameters> LoadParameters(const std::string& folder, const Config& config, at::ScalarType dtype,
                                        at::Device device) {
  const auto store = TensorStore::Open(folder);
  if (!store) return tl::unexpected(store.error());
  Parameters parameters;
  const auto wanted = NamedTensors(config, parameters);
  if (auto named = CheckNames(wanted, config, *store); !named) return tl::unexpected(named.error());
  for (const auto& tensor : wanted) {
    auto loaded = Load(store->Tensors().at(tensor.name), tensor, dtype, device);
    if (!loaded) return tl::unexpected(loaded.error());
    *tensor.tensor = std::move(*loaded);
  }
  if (config.tied) parameters.head = parameters.embed;
  return parameters;
}

base::Result<void> SaveParameters(const std::string& folder, const Config& config, const Parameters& parameters,
                                  const SaveOptions& options, files::Disk& disk) {
  Parameters copy = parameters;  // handles only
  auto shards = Divide(NamedTensors(config, copy), options);
  for (size_t i = 0; i < shards.size(); ++i) {
    if (auto done = WriteShard(folder + "/" + ShardName(i, shards.size()), shards[i], options.dtype, disk); !done)
      return done;
  }
  if (shards.size() == 1) return {};
  return WriteIndex(folder + "/model.safetensors.index.json", shards, disk);
}

base::Result<at::ScalarType> DtypeNamed(const std::string& name) {
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  if (name == "float32") return at::kFloat;
  return base::Fail("E_DTYPE", "dtype: found " + name + ", expected bfloat16, float16 or float32");
}

}  // namespace outrider::model
