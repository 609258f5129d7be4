// The n-th call fails, for every n: the file is absent or complete, and nothing else is left.

#include "files/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace outrider::files {
namespace {

namespace fs = std::filesystem;

class FailingDisk final : public Disk {
 public:
  explicit FailingDisk(int fails_at) : fails_at_(fails_at) {}
  int Calls() const { return calls_; }

  int Open(const std::string& path, int& fd) override { return Fails() ? EACCES : Disk::Open(path, fd); }
  // A few bytes at a time, as a nearly full disk gives them.
  int Write(int fd, const std::byte* bytes, size_t count, size_t& written) override {
    return Fails() ? ENOSPC : Disk::Write(fd, bytes, std::min<size_t>(count, 4), written);
  }
  int Sync(int fd) override { return Fails() ? EIO : Disk::Sync(fd); }
  int Close(int fd) override { return Disk::Close(fd) != 0 || Fails() ? EIO : 0; }
  int Rename(const std::string& from, const std::string& to) override { return Fails() ? EXDEV : Disk::Rename(from, to); }
  int SyncFolder(const std::string& folder) override { return Fails() ? EIO : Disk::SyncFolder(folder); }

 private:
  bool Fails() { return ++calls_ == fails_at_; }
  int calls_ = 0;
  int fails_at_;
};

class AtomicFiles : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
  std::string Content() const {
    std::ifstream file(Path());
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }
  std::string Path() const { return (folder_ / "result").string(); }
  size_t Files() const { return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {})); }

  static base::Result<void> WriteAll(const std::string& path, const std::string& text, Disk& disk) {
    auto file = AtomicFile::Create(path, disk);
    if (!file) return tl::unexpected(file.error());
    if (auto written = file->Write(text); !written) return written;
    return file->Commit();
  }

  fs::path folder_ = fs::temp_directory_path() / ("outrider_atomic_" + std::to_string(::getpid()));
};

TEST_F(AtomicFiles, ReplacesInOnePiece) {
  ASSERT_TRUE(WriteAll(Path(), "old", Disk::Real()));
  auto file = AtomicFile::Create(Path());
  ASSERT_TRUE(file);
  ASSERT_TRUE(file->Write("new text"));
  EXPECT_EQ(Content(), "old") << "until it is committed";
  ASSERT_TRUE(file->Commit());
  EXPECT_EQ(Content(), "new text");
  EXPECT_EQ(Files(), 1u);
}

TEST_F(AtomicFiles, AbandonedLeavesNothing) {
  { ASSERT_TRUE(AtomicFile::Create(Path())->Write("half")); }
  EXPECT_EQ(Files(), 0u);
}

TEST_F(AtomicFiles, EveryCallMayFail) {
  FailingDisk counting(-1);
  ASSERT_TRUE(WriteAll(Path(), "0123456789", counting));
  ASSERT_EQ(counting.Calls(), 8);  // open, three writes, fsync, close, rename, fsync of the folder
  for (int n = 1; n <= counting.Calls(); ++n) {
    ASSERT_TRUE(WriteAll(Path(), "before", Disk::Real()));
    FailingDisk disk(n);
    const auto written = WriteAll(Path(), "0123456789", disk);
    ASSERT_FALSE(written) << n;
    EXPECT_THAT(written.error().message, testing::HasSubstr(Path())) << n;
    EXPECT_EQ(Content(), n == counting.Calls() ? "0123456789" : "before") << n;
    EXPECT_EQ(Files(), 1u) << n;
  }
}

TEST_F(AtomicFiles, FolderThatIsNotThereIsNamed) {
  const auto file = AtomicFile::Create((folder_ / "none" / "x").string());
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, "E_WRITE");
  EXPECT_THAT(file.error().message, testing::HasSubstr("none/x: open: No such file"));
}

}  // namespace
}  // namespace outrider::files
