#include "files/mapped_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace outrider::files {
namespace {

class Mapped : public testing::Test {
 protected:
  Mapped() { std::filesystem::remove_all(path_); }
  ~Mapped() override { std::filesystem::remove_all(path_); }
  std::string path_ = (std::filesystem::temp_directory_path() / "outrider_mapped_file").string();
};

TEST_F(Mapped, HasTheBytesOfTheFile) {
  const std::string text("one\0two", 7);
  std::ofstream(path_, std::ios::binary) << text;
  auto file = MappedFile::Open(path_);
  ASSERT_TRUE(file) << file.error().message;
  const MappedFile moved = std::move(*file);
  EXPECT_EQ(moved.Text(), text);
  EXPECT_EQ(moved.Path(), path_);
}

TEST_F(Mapped, AnEmptyFileHasNoBytes) {
  std::ofstream(path_).flush();
  const auto file = MappedFile::Open(path_);
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_TRUE(file->Bytes().empty());
}

TEST_F(Mapped, NamesWhatCannotBeRead) {
  EXPECT_EQ(MappedFile::Open(path_).error().message, path_ + ": open: No such file or directory");
  std::filesystem::create_directory(path_);
  const auto folder = MappedFile::Open(path_);
  EXPECT_EQ(folder.error().code, "E_READ");
  EXPECT_EQ(folder.error().message, path_ + ": stat: Is a directory");
}

}  // namespace
}  // namespace outrider::files
