#include "files/disk.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace outrider::files {

int Disk::Open(const std::string& path, int& fd) {
  fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  return fd < 0 ? errno : 0;
}

int Disk::Write(int fd, const std::byte* bytes, size_t count, size_t& written) {
  const ssize_t done = ::write(fd, bytes, count);
  written = done < 0 ? 0 : static_cast<size_t>(done);
  return done < 0 ? errno : 0;
}

int Disk::Sync(int fd) { return ::fsync(fd) != 0 ? errno : 0; }
int Disk::Close(int fd) { return ::close(fd) != 0 ? errno : 0; }
int Disk::Rename(const std::string& from, const std::string& to) {
  return ::rename(from.c_str(), to.c_str()) != 0 ? errno : 0;
}

int Disk::SyncFolder(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno;
  const int error = ::fsync(fd) != 0 ? errno : 0;
  ::close(fd);
  return error;
}

void Disk::Remove(const std::string& path) { (void)::unlink(path.c_str()); }

namespace {
Disk* replacement = nullptr;
}  // namespace

Disk& Disk::Real() {
  static auto* disk = new Disk();
  return replacement != nullptr ? *replacement : *disk;
}

void Disk::Replace(Disk* disk) { replacement = disk; }

}  // namespace outrider::files
