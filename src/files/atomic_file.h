#pragma once
// A file that appears under its name complete and on disk, or not at all.

#include <span>
#include <string>

#include "base/result.h"
#include "files/disk.h"

namespace outrider::files {

class AtomicFile {
 public:
  // Opens `path`.tmp. Code of all errors: E_WRITE; messages name the file, the call and the reason.
  static base::Result<AtomicFile> Create(const std::string& path, Disk& disk = Disk::Real());
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();  // without Commit: nothing remains

  base::Result<void> Write(std::span<const std::byte> bytes);
  base::Result<void> Write(std::string_view text) { return Write(std::as_bytes(std::span(text))); }
  // The bytes reach the disk, then the name. An older file of that name is replaced in one piece.
  base::Result<void> Commit();

 private:
  AtomicFile(std::string path, int fd, Disk& disk) : path_(std::move(path)), fd_(fd), disk_(&disk) {}
  std::string Temporary() const { return path_ + ".tmp"; }
  tl::unexpected<base::Error> Failed(const char* call, int error) const;

  std::string path_;
  int fd_;  // -1: closed
  bool there_ = true;  // the temporary file exists
  Disk* disk_;
};

}  // namespace outrider::files
