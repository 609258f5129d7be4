#pragma once
// The calls that may fail for want of space, rights or luck, in one place, so that tests can make the n-th of them
// fail.

#include <cstddef>
#include <string>

namespace outrider::files {

class Disk {
 public:
  virtual ~Disk() = default;
  // Each returns 0 or an errno value.
  virtual int Open(const std::string& path, int& fd);  // for writing; the file is new or emptied
  virtual int Write(int fd, const std::byte* bytes, size_t count, size_t& written);
  virtual int Sync(int fd);
  virtual int Close(int fd);
  virtual int Rename(const std::string& from, const std::string& to);
  virtual int SyncFolder(const std::string& folder);
  virtual void Remove(const std::string& path);  // best effort

  static Disk& Real();
  // For tests of whole programs: what Real() returns from now on, nullptr for the real one. Not while files are
  // written.
  static void Replace(Disk* disk);
};

}  // namespace outrider::files
