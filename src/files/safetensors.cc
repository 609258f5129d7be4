#include "files/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <set>
#include <tuple>

#include <nlohmann/json.hpp>

namespace outrider::files {
namespace {

using nlohmann::json;

constexpr const char* kCode = "E_SAFETENSORS";
constexpr size_t kLengthBytes = 8;
constexpr size_t kRankMax = 16;

struct DtypeFacts {
  std::string_view name;
  size_t bytes;
};
constexpr std::array<DtypeFacts, 11> kDtypes = {{{"BOOL", 1}, {"U8", 1}, {"I8", 1}, {"I16", 2}, {"I32", 4},
                                                 {"I64", 8}, {"F16", 2}, {"BF16", 2}, {"F32", 4}, {"F64", 8}, {"U16", 2}}};

std::optional<Dtype> DtypeNamed(std::string_view name) {
  for (size_t i = 0; i < kDtypes.size(); ++i) {
    if (kDtypes[i].name == name) return static_cast<Dtype>(i);
  }
  return std::nullopt;
}

auto Bad(std::string message) { return base::Fail(kCode, std::move(message)); }

// A parser callback that refuses names which stand twice in one object, and nesting that no header has.
class StrictKeys {
 public:
  bool operator()(int depth, json::parse_event_t event, json& value) {
    if (depth > 3) too_deep_ = true;
    if (event == json::parse_event_t::object_start) open_.emplace_back();
    if (event == json::parse_event_t::object_end && !open_.empty()) open_.pop_back();
    if (event == json::parse_event_t::key && !open_.back().insert(value.get<std::string>()).second && twice_.empty()) {
      twice_ = value.get<std::string>();
    }
    return true;
  }
  std::string Complaint() const {
    if (!twice_.empty()) return "the name \"" + twice_ + "\" stands twice in the header";
    return too_deep_ ? "the header is nested too deeply" : "";
  }

 private:
  std::vector<std::set<std::string>> open_;
  std::string twice_;
  bool too_deep_ = false;
};

bool IsNatural(const json& value) { return value.is_number_unsigned() && value.get<uint64_t>() <= std::numeric_limits<int64_t>::max(); }

// The product of shape and element size; nothing if it does not fit.
std::optional<uint64_t> SizeOf(const TensorEntry& entry) {
  uint64_t bytes = BytesOf(entry.dtype);
  for (int64_t size : entry.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes)) return std::nullopt;
  }
  return bytes;
}

base::Result<TensorEntry> ParseEntry(const std::string& name, const json& value) {
  TensorEntry entry;
  entry.name = name;
  const auto bad = [&](const std::string& what) { return Bad(name + ": " + what); };
  if (!value.is_object()) return bad("found no object, expected dtype, shape and data_offsets");
  for (const auto& [key, unused] : value.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") return bad("found the field \"" + key + "\", expected dtype, shape and data_offsets");
  }
  if (value.size() != 3) return bad("found " + std::to_string(value.size()) + " fields, expected dtype, shape and data_offsets");
  const auto dtype = value["dtype"].is_string() ? DtypeNamed(value["dtype"].get<std::string>()) : std::nullopt;
  if (!dtype) return bad("found dtype " + value["dtype"].dump() + ", expected one of BOOL U8 I8 I16 U16 I32 I64 F16 BF16 F32 F64");
  entry.dtype = *dtype;
  const json& shape = value["shape"];
  if (!shape.is_array() || shape.size() > kRankMax || !std::all_of(shape.begin(), shape.end(), IsNatural)) {
    return bad("found shape " + shape.dump() + ", expected at most " + std::to_string(kRankMax) + " sizes");
  }
  for (const auto& size : shape) entry.shape.push_back(size.get<int64_t>());
  const json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !IsNatural(offsets[0]) || !IsNatural(offsets[1])) {
    return bad("found data_offsets " + offsets.dump() + ", expected two byte positions");
  }
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  const auto bytes = SizeOf(entry);
  if (!bytes || entry.end < entry.begin || entry.end - entry.begin != *bytes) {
    return bad("found data_offsets " + offsets.dump() + ", expected " + (bytes ? std::to_string(*bytes) : "too many") + " bytes for " +
               std::string(NameOf(entry.dtype)) + " " + shape.dump());
  }
  return entry;
}

// Sorted by their bytes; without hole or overlap from the first byte to the last.
base::Result<void> CheckPlaces(std::vector<TensorEntry>& tensors, uint64_t data_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t next = 0;
  for (const auto& entry : tensors) {
    if (entry.begin != next) {
      return Bad(entry.name + ": found its first byte at " + std::to_string(entry.begin) + ", expected it at " + std::to_string(next) +
                 (entry.begin < next ? " (it overlaps the tensor before)" : " (a hole)"));
    }
    next = entry.end;
  }
  if (next != data_bytes) return Bad("found " + std::to_string(data_bytes) + " bytes of data, expected " + std::to_string(next) + " for all tensors");
  return {};
}

base::Result<std::map<std::string, std::string>> ParseMetadata(const json& value) {
  std::map<std::string, std::string> metadata;
  if (!value.is_object()) return Bad("__metadata__: found no object, expected texts by name");
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) return Bad("__metadata__: found " + text.dump() + " for \"" + key + "\", expected a text");
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

}  // namespace

size_t BytesOf(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)].bytes; }
std::string_view NameOf(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)].name; }

base::Result<uint64_t> HeaderLength(std::span<const std::byte> start, uint64_t file_bytes) {
  static_assert(std::endian::native == std::endian::little);
  if (start.size() < kLengthBytes || file_bytes < kLengthBytes) {
    return Bad("found a file of " + std::to_string(file_bytes) + " bytes, expected a header length of 8 bytes at its start");
  }
  uint64_t length = 0;
  std::memcpy(&length, start.data(), kLengthBytes);
  if (length > kHeaderBytesMax) {
    return Bad("found a header length of " + std::to_string(length) + " bytes, expected at most " + std::to_string(kHeaderBytesMax));
  }
  if (length > file_bytes - kLengthBytes) {
    return Bad("found a header length of " + std::to_string(length) + " bytes, expected at most the " + std::to_string(file_bytes - kLengthBytes) +
               " that follow in the file");
  }
  return length;
}

base::Result<SafetensorsHeader> ParseHeader(std::string_view text, uint64_t file_bytes) {
  if (file_bytes < kLengthBytes + text.size()) return Bad("found a file shorter than its header");
  if (text.empty() || text.front() != '{') return Bad("found no JSON object at the start of the header");
  StrictKeys keys;
  const json root = json::parse(text, std::ref(keys), /*allow_exceptions=*/false);
  if (root.is_discarded() || !root.is_object()) return Bad("found a header that is no JSON object in UTF-8");
  if (std::string complaint = keys.Complaint(); !complaint.empty()) return Bad(complaint);
  SafetensorsHeader header;
  header.data_begin = kLengthBytes + text.size();
  for (const auto& [name, value] : root.items()) {
    if (name == "__metadata__") {
      auto metadata = ParseMetadata(value);
      if (!metadata) return tl::unexpected(metadata.error());
      header.metadata = std::move(*metadata);
      continue;
    }
    auto entry = ParseEntry(name, value);
    if (!entry) return tl::unexpected(entry.error());
    header.tensors.push_back(std::move(*entry));
  }
  if (auto placed = CheckPlaces(header.tensors, file_bytes - header.data_begin); !placed) return tl::unexpected(placed.error());
  return header;
}

std::string WriteHeader(std::vector<TensorEntry>& tensors, const std::map<std::string, std::string>& metadata) {
  json root = json::object();
  if (!metadata.empty()) root["__metadata__"] = metadata;
  uint64_t next = 0;
  for (auto& entry : tensors) {
    entry.begin = next;
    next += SizeOf(entry).value();
    entry.end = next;
    root[entry.name] = {{"dtype", NameOf(entry.dtype)}, {"shape", entry.shape}, {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = root.dump();
  text.append((kLengthBytes - text.size() % kLengthBytes) % kLengthBytes, ' ');
  return text;
}

}  // namespace outrider::files
