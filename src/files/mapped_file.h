#pragma once
// A whole file as bytes in memory, read-only. Pages are read when they are touched, so size costs nothing.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace outrider::files {

class MappedFile {
 public:
  // Works on read-only media. Code: E_READ; the message names file, call and reason.
  static base::Result<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  const std::string& Path() const { return path_; }
  // Valid as long as this object, and only while nobody shortens the file.
  std::span<const std::byte> Bytes() const { return bytes_; }
  std::string_view Text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }

 private:
  MappedFile(std::string path, std::span<const std::byte> bytes) : path_(std::move(path)), bytes_(bytes) {}

  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace outrider::files
