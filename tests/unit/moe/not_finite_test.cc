// Numbers that are none stop a refactoring with the place named, and leave the last good checkpoint.

#include <gmock/gmock.h>

#include <limits>

#include <ATen/ops/isfinite.h>

#include "moe/tensor_file.h"
#include "refactor_support.h"

namespace outrider::moe {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

class NotFiniteTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(root_);
    WriteData(root_ + "/data");
    WriteRandomModel(root_ + "/random");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string ErrorOf(const json& changes) const {
    json all = {{"model", root_ + "/random"}, {"out", root_ + "/out"}, {"rounds", 1},
                {"router.steps", 5},          {"expert.steps", 5},     {"batch", 2},
                {"eval_tokens", 32},          {"checkpoint_steps", 1}};
    all.update(changes);
    return RunWith(Base(root_), all).value("error", "");
  }
  // Whether every checkpoint that is left holds finite numbers only, and there is one.
  bool LeftCheckpointsAreGood() const {
    int found = 0;
    for (const auto& entry : std::filesystem::directory_iterator(root_ + "/out")) {
      if (!entry.path().filename().string().starts_with("checkpoint-")) continue;
      ++found;
      const TensorFile file = LoadTensors(entry.path().string()).value();
      for (const NamedTensor& t : file.tensors) {
        if (t.tensor.is_floating_point() && !t.tensor.isfinite().all().item<bool>()) return false;
      }
    }
    return found > 0;
  }

  const std::string root_ = testing::TempDir() + "outrider_not_finite";
};

TEST_F(NotFiniteTest, AnExpertStageThatBlowsUpSaysWhere) {
  const std::string error = ErrorOf({{"expert.rate", 1e30}, {"weight_decay", 0.0}});
  EXPECT_THAT(error, testing::StartsWith("E_NAN: ")) << error;
  EXPECT_THAT(error, testing::AnyOf(HasSubstr("expert stage, round 0, step "), HasSubstr("behind step "))) << error;
  EXPECT_TRUE(LeftCheckpointsAreGood());
}

TEST_F(NotFiniteTest, ARouterStageThatBlowsUpSaysWhere) {
  const std::string error = ErrorOf({{"router.rate", 1e38}, {"weight_decay", 0.0}});
  EXPECT_THAT(error, testing::StartsWith("E_NAN: ")) << error;
  EXPECT_THAT(error, testing::AnyOf(HasSubstr("router stage, round 0, step "), HasSubstr("behind step "))) << error;
  EXPECT_TRUE(LeftCheckpointsAreGood());
}

TEST_F(NotFiniteTest, WeightsThatOverflowInTheLastStepAreNotKept) {
  const std::string error = ErrorOf({{"router.steps", 0}, {"expert.steps", 1}, {"expert.rate", 1e39}});
  EXPECT_THAT(error, HasSubstr("E_NAN: behind step 1: backbone.")) << error;
  EXPECT_FALSE(std::filesystem::exists(root_ + "/out/model"));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/out/result.json"));
  EXPECT_TRUE(LeftCheckpointsAreGood());
}

TEST_F(NotFiniteTest, AModelWithSuchWeightsIsRefusedBeforeAnythingIsWritten) {
  const std::string path = root_ + "/random/model.safetensors";
  TensorFile file = LoadTensors(path).value();
  for (NamedTensor& t : file.tensors) {
    if (t.name == "model.layers.1.mlp.up_proj.weight") t.tensor[3][4] = std::numeric_limits<float>::quiet_NaN();
  }
  ASSERT_TRUE(SaveTensors(path, file.tensors, file.metadata));
  EXPECT_THAT(ErrorOf({}), HasSubstr("model.safetensors: model.layers.1.mlp.up_proj.weight: found 1"));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/out"));
}

}  // namespace
}  // namespace outrider::moe
