#include "files/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace outrider::files {
namespace {

auto Failed(const std::string& path, const char* call, int error) {
  return base::Fail("E_READ", path + ": " + call + ": " + std::generic_category().message(error));
}

}  // namespace

base::Result<MappedFile> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Failed(path, "open", errno);
  struct stat facts{};
  int error = fstat(fd, &facts) == 0 ? 0 : errno;
  if (error == 0 && !S_ISREG(facts.st_mode)) error = S_ISDIR(facts.st_mode) ? EISDIR : EINVAL;
  if (error != 0) {
    close(fd);
    return Failed(path, "stat", error);
  }
  const auto size = static_cast<size_t>(facts.st_size);
  void* memory = nullptr;
  if (size > 0) memory = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  error = errno;
  close(fd);
  if (memory == MAP_FAILED) return Failed(path, "mmap", error);
  return MappedFile(path, {static_cast<const std::byte*>(memory), size});
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace outrider::files
