#include "model/tensor_store.h"

#include <cstring>
#include <filesystem>
#include <set>

#include <nlohmann/json.hpp>

#include "files/shallow_json.h"

namespace outrider::model {
namespace {

using nlohmann::json;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr size_t kPrefixBytes = 8;

auto Bad(std::string message) { return base::Fail("E_SHARDS", std::move(message)); }

// Tensor -> file name within the folder.
using WeightMap = std::map<std::string, std::string>;

base::Result<WeightMap> ReadIndex(const std::string& path) {
  const auto file = files::MappedFile::Open(path);
  if (!file) return tl::unexpected(file.error());
  const json root = files::ParseShallowJson(file->Text());
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object() ||
      root["weight_map"].empty()) {
    return Bad(path + ": weight_map: found none, expected the file of each tensor");
  }
  WeightMap map;
  for (const auto& [name, value] : root["weight_map"].items()) {
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    if (shard.empty() || shard.find('/') != std::string::npos) {
      return Bad(path + ": " + name + ": found " + value.dump() + ", expected the name of a file in this folder");
    }
    map[name] = shard;
  }
  return map;
}

std::string Missing(const std::string& folder, const std::set<std::string>& shards) {
  std::string list;
  for (const auto& shard : shards) {
    if (!std::filesystem::is_regular_file(std::filesystem::path(folder) / shard))
      list += (list.empty() ? "" : ", ") + shard;
  }
  return list;
}

// The bits of an IEEE number whose exponent is all ones are those of NaN and infinity.
template <class Bits>
std::optional<NonFinite> Scan(std::span<const std::byte> bytes, Bits exponent) {
  NonFinite found;
  const size_t count = bytes.size() / sizeof(Bits);
  for (size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, bytes.data() + i * sizeof(Bits), sizeof(Bits));
    found.count += (bits & exponent) == exponent;
  }
  if (found.count == 0) return std::nullopt;
  for (size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, bytes.data() + i * sizeof(Bits), sizeof(Bits));
    if ((bits & exponent) != exponent) continue;
    found.first = static_cast<int64_t>(i);
    break;
  }
  return found;
}

}  // namespace

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::optional<NonFinite> FindNonFinite(const StoredTensor& tensor) {
  switch (tensor.entry.dtype) {
    case files::Dtype::kBF16:
      return Scan<uint16_t>(tensor.bytes, 0x7f80);
    case files::Dtype::kF16:
      return Scan<uint16_t>(tensor.bytes, 0x7c00);
    case files::Dtype::kF32:
      return Scan<uint32_t>(tensor.bytes, 0x7f80'0000);
    case files::Dtype::kF64:
      return Scan<uint64_t>(tensor.bytes, 0x7ff0'0000'0000'0000);
    default:
      return std::nullopt;
  }
}

base::Result<void> TensorStore::AddFile(const std::string& path) {
  auto file = files::MappedFile::Open(path);
  if (!file) return tl::unexpected(file.error());
  const auto bytes = file->Bytes();
  const auto named = [&](const base::Error& error) { return base::Fail(error.code, path + ": " + error.message); };
  const auto length = files::HeaderLength(bytes.first(std::min(bytes.size(), kPrefixBytes)), bytes.size());
  if (!length) return named(length.error());
  auto header = files::ParseHeader(file->Text().substr(kPrefixBytes, *length), bytes.size());
  if (!header) return named(header.error());
  for (auto& entry : header->tensors) {
    const auto place = bytes.subspan(header->data_begin + entry.begin, entry.end - entry.begin);
    const std::string name = entry.name;
    const auto [at, added] = tensors_.try_emplace(name, StoredTensor{std::move(entry), path, place});
    if (!added) return Bad(path + ": " + name + ": found a second time, expected only in " + at->second.file);
  }
  files_.push_back(std::move(*file));
  return {};
}

base::Result<TensorStore> TensorStore::Open(const std::string& folder) {
  const std::string single = folder + "/" + kSingle, index = folder + "/" + kIndex;
  if (std::filesystem::exists(single)) {
    TensorStore store(single);
    if (auto added = store.AddFile(single); !added) return tl::unexpected(added.error());
    return store;
  }
  if (!std::filesystem::exists(index)) {
    return Bad(folder + ": found neither " + kSingle + " nor " + kIndex + ", expected one of them");
  }
  const auto map = ReadIndex(index);
  if (!map) return tl::unexpected(map.error());
  std::set<std::string> shards;
  for (const auto& [name, shard] : *map) shards.insert(shard);
  if (const std::string missing = Missing(folder, shards); !missing.empty()) {
    return Bad(index + ": weight_map: missing files: " + missing);
  }
  TensorStore store(index);
  for (const auto& shard : shards) {
    if (auto added = store.AddFile(folder + "/" + shard); !added) return tl::unexpected(added.error());
  }
  for (const auto& [name, shard] : *map) {
    const auto it = store.tensors_.find(name);
    if (it == store.tensors_.end() || it->second.file != folder + "/" + shard) {
      return Bad(folder + "/" + shard + ": " + name + ": found no such tensor, expected it by " + index);
    }
  }
  return store;
}

}  // namespace outrider::model
