#pragma once
// The safetensors container: eight bytes of header length, a JSON header, then the bytes of all tensors.
// https://github.com/huggingface/safetensors describes the format; this reader accepts nothing that it does not allow.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace outrider::files {

enum class Dtype : uint8_t { kBool, kU8, kI8, kI16, kI32, kI64, kF16, kBF16, kF32, kF64, kU16 };

size_t BytesOf(Dtype dtype);            // of one element
std::string_view NameOf(Dtype dtype);   // as in the header: "BF16"

struct TensorEntry {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;           // elements
  uint64_t begin = 0, end = 0;          // bytes, counted from the first byte after the header
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;             // in the order of their bytes
  std::map<std::string, std::string> metadata;  // "__metadata__"
  uint64_t data_begin = 0;                      // bytes from the start of the file
};

constexpr uint64_t kHeaderBytesMax = 100'000'000;

// How long the JSON header is. `start`: the first eight bytes of a file of `file_bytes` bytes. Code: E_SAFETENSORS.
base::Result<uint64_t> HeaderLength(std::span<const std::byte> start, uint64_t file_bytes);

// `json`: the header text. Checks that names are unique, dtypes known, sizes right, and that the tensors fill the file
// without hole or overlap. Messages name tensor, what was found and what was expected; the file is the caller's to name.
base::Result<SafetensorsHeader> ParseHeader(std::string_view json, uint64_t file_bytes);

// Header text for tensors that lie one after another in this order, padded so that the data starts at a multiple of
// eight; offsets of `tensors` are filled in.
std::string WriteHeader(std::vector<TensorEntry>& tensors, const std::map<std::string, std::string>& metadata);

}  // namespace outrider::files
