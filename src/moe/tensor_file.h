#pragma once
// Tensors of any dtype in one safetensors file, complete or absent. Names and metadata are the caller's.

#include <algorithm>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "base/result.h"
#include "files/atomic_file.h"
#include "files/mapped_file.h"
#include "files/safetensors.h"
#include "moe/named_tensor.h"

namespace outrider::moe {

struct TensorFile {
  NamedTensors tensors;  // on the CPU
  std::map<std::string, std::string> metadata;
};

inline constexpr std::pair<files::Dtype, at::ScalarType> kStoredDtypes[] = {
    {files::Dtype::kF32, at::kFloat}, {files::Dtype::kBF16, at::kBFloat16}, {files::Dtype::kF64, at::kDouble},
    {files::Dtype::kI64, at::kLong},  {files::Dtype::kI32, at::kInt},       {files::Dtype::kI16, at::kShort},
    {files::Dtype::kU8, at::kByte},   {files::Dtype::kF16, at::kHalf},      {files::Dtype::kU16, at::kUInt16},
    {files::Dtype::kI8, at::kChar}};

// Code: E_WRITE.
inline base::Result<void> SaveTensors(const std::string& path, const NamedTensors& tensors,
                                      const std::map<std::string, std::string>& metadata) {
  std::vector<files::TensorEntry> entries;
  for (const NamedTensor& t : tensors) {
    const auto dtype = std::ranges::find(kStoredDtypes, t.tensor.scalar_type(), [](const auto& d) { return d.second; });
    entries.push_back({t.name, dtype->first, t.tensor.sizes().vec()});
  }
  const std::string header = files::WriteHeader(entries, metadata);
  const uint64_t length = header.size();
  auto file = files::AtomicFile::Create(path);
  if (!file) return tl::unexpected(file.error());
  if (auto done = file->Write(std::as_bytes(std::span(&length, 1))); !done) return done;
  if (auto done = file->Write(header); !done) return done;
  for (const NamedTensor& t : tensors) {
    const at::Tensor plain = t.tensor.detach().to(at::kCPU).contiguous();
    if (auto done = file->Write({static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()}); !done) {
      return done;
    }
  }
  return file->Commit();
}

// Codes: E_READ, E_SAFETENSORS.
inline base::Result<TensorFile> LoadTensors(const std::string& path) {
  auto mapped = files::MappedFile::Open(path);
  if (!mapped) return tl::unexpected(mapped.error());
  const auto failed = [&](base::Error error) {
    error.message = path + ": " + error.message;
    return tl::unexpected(std::move(error));
  };
  const std::span<const std::byte> bytes = mapped->Bytes();
  const auto length = files::HeaderLength(bytes.first(std::min<size_t>(8, bytes.size())), bytes.size());
  if (!length) return failed(length.error());
  const auto header = files::ParseHeader(mapped->Text().substr(8, *length), bytes.size());
  if (!header) return failed(header.error());
  TensorFile out{.tensors = {}, .metadata = header->metadata};
  for (const files::TensorEntry& entry : header->tensors) {
    const auto dtype = std::ranges::find(kStoredDtypes, entry.dtype, [](const auto& d) { return d.first; });
    if (dtype == std::end(kStoredDtypes)) {
      return failed({"E_SAFETENSORS", entry.name + ": found dtype " + std::string(files::NameOf(entry.dtype))});
    }
    const at::Tensor tensor = at::empty(entry.shape, at::TensorOptions().dtype(dtype->second));
    std::memcpy(tensor.mutable_data_ptr(), bytes.data() + header->data_begin + entry.begin, entry.end - entry.begin);
    out.tensors.push_back({entry.name, tensor});
  }
  return out;
}

}  // namespace outrider::moe
