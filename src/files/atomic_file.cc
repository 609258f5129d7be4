#include "files/atomic_file.h"

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

namespace outrider::files {

base::Result<AtomicFile> AtomicFile::Create(const std::string& path, Disk& disk) {
  AtomicFile file(path, -1, disk);
  if (const int error = disk.Open(file.Temporary(), file.fd_); error != 0) {
    file.there_ = false;
    return file.Failed("open", error);
  }
  return file;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), there_(std::exchange(other.there_, false)), disk_(other.disk_) {}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) disk_->Close(fd_);
  if (there_) disk_->Remove(Temporary());
}

base::Result<void> AtomicFile::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    size_t written = 0;
    const int error = disk_->Write(fd_, bytes.data(), bytes.size(), written);
    if (error == EINTR) continue;
    if (error != 0) return Failed("write", error);
    if (written == 0) return Failed("write", ENOSPC);
    bytes = bytes.subspan(written);
  }
  return {};
}

base::Result<void> AtomicFile::Commit() {
  if (const int error = disk_->Sync(fd_); error != 0) return Failed("fsync", error);
  if (const int error = disk_->Close(std::exchange(fd_, -1)); error != 0) return Failed("close", error);
  if (const int error = disk_->Rename(Temporary(), path_); error != 0) return Failed("rename", error);
  there_ = false;
  const std::string folder = std::filesystem::path(path_).parent_path().string();
  if (const int error = disk_->SyncFolder(folder.empty() ? "." : folder); error != 0) return Failed("fsync of the folder", error);
  return {};
}

tl::unexpected<base::Error> AtomicFile::Failed(const char* call, int error) const {
  return base::Fail("E_WRITE", path_ + ": " + call + ": " + std::generic_category().message(error));
}

}  // namespace outrider::files
