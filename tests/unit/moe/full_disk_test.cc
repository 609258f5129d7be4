// The n-th write of a whole refactoring fails, for every n: what is there is complete, and the same call goes on to the
// same bits once there is room again.

#include <cerrno>

#include "files/disk.h"
#include "refactor_support.h"

namespace outrider::moe {
namespace {

// Fails the n-th call that writes.
class FullDisk : public files::Disk {
 public:
  explicit FullDisk(int calls) : calls_(calls) { Replace(this); }
  ~FullDisk() override { Replace(nullptr); }
  int Write(int fd, const std::byte* bytes, size_t count, size_t& written) override {
    return calls_-- == 0 ? ENOSPC : Disk::Write(fd, bytes, count, written);
  }
  bool Failed() const { return calls_ < 0; }

 private:
  int calls_;
};

class FullDiskTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(root_);
    WriteData(root_ + "/data");
    WriteRandomModel(root_ + "/random");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  json Run(const std::string& name) const {
    return RunWith(Base(root_), {{"model", root_ + "/random"},
                                 {"out", root_ + "/" + name},
                                 {"rounds", 1},
                                 {"router.steps", 1},
                                 {"expert.steps", 1},
                                 {"batch", 2},
                                 {"coverage.rounds", 2},
                                 {"eval_tokens", 32},
                                 {"trace_tokens", 0}});
  }
  // Names and bytes of all files of the written model; empty when there is none.
  std::map<std::string, std::string> ModelOf(const std::string& name) const {
    std::map<std::string, std::string> files;
    const std::string folder = root_ + "/" + name + "/model";
    if (!std::filesystem::exists(folder)) return files;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      files[entry.path().filename().string()] = Slurp(entry.path().string());
    }
    return files;
  }
  bool LeavesNothingHalf(const std::string& name) const {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root_ + "/" + name)) {
      if (entry.path().extension() == ".tmp") return false;
    }
    return true;
  }

  const std::string root_ = testing::TempDir() + "outrider_full_disk";
};

TEST_F(FullDiskTest, NothingIsLostWhicheverWriteFails) {
  const json whole = Run("whole");
  ASSERT_FALSE(whole.contains("error")) << whole["error"];
  const auto model = ModelOf("whole");
  ASSERT_GE(model.size(), 5);
  int writes = 0;
  for (;; ++writes) {
    const std::string name = "full" + std::to_string(writes);
    bool failed = false;
    json result;
    {
      const FullDisk disk(writes);
      result = Run(name);
      failed = disk.Failed();
    }
    ASSERT_EQ(result.contains("error"), failed) << writes;
    if (!failed) break;
    EXPECT_EQ(result["error"].get<std::string>().substr(0, 8), "E_WRITE:") << writes;
    EXPECT_TRUE(LeavesNothingHalf(name)) << writes;
    const auto found = ModelOf(name);
    EXPECT_TRUE(found.empty() || found == model) << writes;
    const json resumed = Run(name);
    ASSERT_FALSE(resumed.contains("error")) << writes << ": " << resumed["error"];
    EXPECT_EQ(resumed["eval"], whole["eval"]) << writes;
    EXPECT_EQ(ModelOf(name), model) << writes;
    std::filesystem::remove_all(root_ + "/" + name);
  }
  EXPECT_GT(writes, 100);
}

}  // namespace
}  // namespace outrider::moe
