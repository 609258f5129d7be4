#include "model/checkpoint.h"

#include <ATen/ops/equal.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "model/tensor_store.h"

namespace outrider::model {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

Config Small() {
  Config config;
  config.model_type = "llama";
  config.hidden_size = 16;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 4;
  config.ffn = 24;
  config.vocab = 40;
  config.max_positions = 32;
  config.windows = {0, 0};
  return config;
}

class Checkpoint : public testing::Test {
 protected:
  Checkpoint() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = (fs::temp_directory_path() / (std::string("outrider_checkpoint_") + info->name())).string();
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  ~Checkpoint() override { fs::remove_all(folder_); }

  void Save(const Config& config, SaveOptions options = {.dtype = at::kFloat}) {
    const auto saved = SaveParameters(folder_, config, RandomParameters(config, 5), options);
    ASSERT_TRUE(saved) << saved.error().message;
  }
  base::Result<Parameters> Load(const Config& config, at::ScalarType dtype = at::kFloat) {
    return LoadParameters(folder_, config, dtype);
  }
  std::string Complaint(const Config& config) {
    const auto loaded = Load(config);
    return loaded ? "" : loaded.error().code + ": " + loaded.error().message;
  }

  std::string folder_;
};

TEST_F(Checkpoint, ShardsGiveTheSameBits) {
  const Config config = Small();
  Save(config, {.shard_bytes_max = 4000, .dtype = at::kFloat});
  EXPECT_TRUE(fs::exists(folder_ + "/model.safetensors.index.json"));
  auto loaded = Load(config);
  ASSERT_TRUE(loaded) << loaded.error().message;
  Parameters expected = RandomParameters(config, 5);
  const auto found = NamedTensors(config, *loaded);
  const auto wanted = NamedTensors(config, expected);
  ASSERT_EQ(found.size(), 2u + 2u * 9u + 1u);
  for (size_t i = 0; i < found.size(); ++i)
    EXPECT_TRUE(at::equal(*found[i].tensor, *wanted[i].tensor)) << found[i].name;
}

TEST_F(Checkpoint, DtypesAreConverted) {
  const Config config = Small();
  Save(config, {.dtype = at::kBFloat16});
  const auto loaded = Load(config);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->embed.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(loaded->embed, RandomParameters(config, 5).embed.to(at::kBFloat16).to(at::kFloat)));
}

TEST_F(Checkpoint, TiedHeadIsTheEmbedding) {
  Config config = Small();
  config.tied = true;
  Save(config);
  const auto loaded = Load(config);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_TRUE(loaded->head.is_same(loaded->embed));
}

TEST_F(Checkpoint, MissingExtraAndMisshapenTensorsAreNamed) {
  Config config = Small();
  Save(config);
  config.layers = 3;
  config.windows = {0, 0, 0};
  EXPECT_THAT(Complaint(config),
              HasSubstr("E_TENSORS: " + folder_ + "/model.safetensors: missing tensors: model.layers.2.input"));
  EXPECT_THAT(Complaint(config), HasSubstr(" and 1 more"));
  config = Small();
  config.tied = true;
  EXPECT_EQ(Complaint(config),
            "E_TENSORS: " + folder_ + "/model.safetensors: tensors that the config does not give: lm_head.weight");
  config = Small();
  config.ffn = 32;
  EXPECT_EQ(Complaint(config),
            "E_TENSORS: " + folder_ +
                "/model.safetensors: model.layers.0.mlp.gate_proj.weight: found shape [24, 16], expected [32, 16]");
}

TEST_F(Checkpoint, AllMissingShardsAreListed) {
  const Config config = Small();
  Save(config, {.shard_bytes_max = 4000, .dtype = at::kFloat});
  std::vector<std::string> shards;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (entry.path().extension() == ".safetensors") shards.push_back(entry.path().filename());
  }
  std::sort(shards.begin(), shards.end());
  ASSERT_GE(shards.size(), 3u);
  fs::remove(folder_ + "/" + shards[0]);
  fs::remove(folder_ + "/" + shards[2]);
  EXPECT_EQ(Complaint(config), "E_SHARDS: " + folder_ + "/model.safetensors.index.json: weight_map: missing files: " +
                                   shards[0] + ", " + shards[2]);
  fs::remove_all(folder_);
  fs::create_directory(folder_);
  EXPECT_THAT(Complaint(config), HasSubstr("E_SHARDS: " + folder_ + ": found neither model.safetensors nor"));
}

TEST_F(Checkpoint, NumbersThatAreNoneAreCounted) {
  const Config config = Small();
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    Parameters broken = RandomParameters(config, 5);
    broken.layers[1].up.flatten().slice(0, 17, 19).fill_(std::numeric_limits<float>::quiet_NaN());
    broken.layers[1].up.flatten()[40].fill_(std::numeric_limits<float>::infinity());
    ASSERT_TRUE(SaveParameters(folder_, config, broken, {.dtype = dtype}));
    EXPECT_EQ(Complaint(config),
              "E_NAN: " + folder_ +
                  "/model.safetensors: model.layers.1.mlp.up_proj.weight: found 3 values that are NaN or infinite, "
                  "the first at index 17, expected finite numbers");
  }
}

TEST_F(Checkpoint, HeadersAreChecked) {
  const Config config = Small();
  Save(config);
  fs::resize_file(folder_ + "/model.safetensors", fs::file_size(folder_ + "/model.safetensors") - 4);
  EXPECT_THAT(Complaint(config), HasSubstr("E_SAFETENSORS: " + folder_ + "/model.safetensors: "));
}

// Fails the n-th call that writes.
class FullDisk : public files::Disk {
 public:
  explicit FullDisk(int calls) : calls_(calls) {}
  int Write(int fd, const std::byte* bytes, size_t count, size_t& written) override {
    return calls_-- == 0 ? ENOSPC : Disk::Write(fd, bytes, count, written);
  }
  bool Failed() const { return calls_ < 0; }

 private:
  int calls_;
};

TEST_F(Checkpoint, NoFailedWriteLeavesAnIndex) {
  const Config config = Small();
  int writes = 0;
  for (;; ++writes) {
    FullDisk disk(writes);
    const auto saved = SaveParameters(folder_, config, RandomParameters(config, 5),
                                      {.shard_bytes_max = 4000, .dtype = at::kFloat}, disk);
    ASSERT_NE(saved.has_value(), disk.Failed());
    if (saved) break;
    EXPECT_EQ(saved.error().code, "E_WRITE");
    EXPECT_FALSE(fs::exists(folder_ + "/model.safetensors.index.json"));
    for (const auto& entry : fs::directory_iterator(folder_)) EXPECT_NE(entry.path().extension(), ".tmp");
    EXPECT_FALSE(Load(config));
  }
  EXPECT_GT(writes, 20);
  EXPECT_TRUE(Load(config));
}

}  // namespace
}  // namespace outrider::model
