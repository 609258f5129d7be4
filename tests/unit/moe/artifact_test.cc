// Refactored models from their files, and texts that run their experts.

#include "moe/artifact.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "model/generate.h"
#include "model/tensor_store.h"
#include "moe/tensor_file.h"
#include "refactor_support.h"

namespace outrider::moe {
namespace {

using testing::HasSubstr;

class ArtifactTest : public RefactorTest {
 protected:
  static void SetUpTestSuite() {
    RefactorTest::SetUpTestSuite();
    const json options = {{"tune", "adapter:4"}, {"expert.rate", 2e-2}, {"weight_decay", 0.0}, {"routing.tau", 0.3},
                          {"experts.keep", 0.4}, {"router.width", 32},  {"rounds", 1},         {"router.steps", 20},
                          {"expert.steps", 10},  {"write_model", true}};
    const json done = Refactored("made", options);
    ASSERT_FALSE(done.contains("error")) << done["error"];
    adapter_ = root_ + "/made/adapter";
    base_ = root_ + "/parent/model";
  }

  static base::Result<RoutedModel> Open(const std::string& folder, const std::string& parent) {
    return OpenArtifact(folder, parent, at::kFloat, at::kCPU);
  }
  static std::string Message(const std::string& folder, const std::string& parent) {
    const auto opened = Open(folder, parent);
    return opened ? "none" : opened.error().code + ": " + opened.error().message;
  }
  static at::Tensor SomeIds(int64_t texts, int64_t tokens) {
    at::manual_seed(1);
    return at::randint(0, kVocab, {texts, tokens}, at::kLong);
  }
  // Logits of a whole pass with the experts on.
  static at::Tensor Logits(const RoutedModel& model, const at::Tensor& ids, at::Tensor* experts = nullptr) {
    const at::NoGradGuard no_grad;
    const model::Parameters weights = model.ComputeCopy();
    const RoutedModel::Masking masking = model.Prepare();
    RoutedHook hook(model, masking);
    const at::Tensor out = model::Logits(model.config, weights, model::HiddenStates(model.config, weights, ids, &hook));
    if (experts != nullptr) *experts = hook.Ids();
    return out;
  }
  static double Apart(const at::Tensor& found, const at::Tensor& expected) {
    return ((found - expected).abs().max() / expected.abs().max()).item<double>();
  }

  inline static std::string adapter_, base_;
};

TEST_F(ArtifactTest, BesideTheParentAndMergedAreOneModel) {
  const std::string merged = root_ + "/merged";
  const auto done = MergeArtifact(adapter_, base_, merged, /*narrow=*/false);
  ASSERT_TRUE(done) << done.error().message;
  const auto beside = Open(adapter_, base_), alone = Open(merged, "");
  ASSERT_TRUE(beside) << beside.error().message;
  ASSERT_TRUE(alone) << alone.error().message;
  const at::Tensor ids = SomeIds(3, 40);
  at::Tensor left, right;
  const at::Tensor expected = Logits(*beside, ids, &left);
  EXPECT_LE(Apart(Logits(*alone, ids, &right), expected), 1e-4);
  EXPECT_TRUE(at::equal(left, right));
  EXPECT_GT(std::get<0>(at::_unique(left)).numel(), 1);
  EXPECT_NE(beside->masks, alone->masks) << "another order of channels";
  // The adapter and the experts both matter.
  RoutedModel plain = *beside;
  plain.adapter.reset();
  EXPECT_GT(Apart(Logits(plain, ids), expected), 1e-2);
  const at::NoGradGuard no_grad;
  const model::Parameters weights = beside->ComputeCopy();
  const at::Tensor dense = model::Logits(beside->config, weights, model::HiddenStates(beside->config, weights, ids));
  EXPECT_GT(Apart(dense, expected), 1e-2);
}

TEST_F(ArtifactTest, TheWrittenModelIsTheTunedOne) {
  // The file rounds the pairs to bfloat16; the other folder was merged before that.
  const auto beside = Open(adapter_, base_), exported = Open(root_ + "/made/model", "");
  ASSERT_TRUE(beside && exported);
  const at::Tensor ids = SomeIds(2, 30);
  EXPECT_LE(Apart(Logits(*beside, ids), Logits(*exported, ids)), 0.02);
  EXPECT_EQ(beside->tau, 0.3);
}

TEST_F(ArtifactTest, PiecesBehindACacheRouteAsTheWholeText) {
  const auto model = Open(adapter_, base_);
  ASSERT_TRUE(model);
  const at::NoGradGuard no_grad;
  const at::Tensor ids = SomeIds(2, 30);
  at::Tensor whole;
  const at::Tensor expected = Logits(*model, ids, &whole);
  const model::Parameters weights = model->ComputeCopy();
  const RoutedModel::Masking masking = model->Prepare();
  RoutedHook hook(*model, masking);
  for (int repeat = 0; repeat < 2; ++repeat) {  // a new text starts anew
    model::KvCache cache(model->config, 2, 30, weights.embed);
    std::vector<at::Tensor> parts, experts;
    for (const auto& [begin, end] : {std::pair{0, 11}, std::pair{11, 12}, std::pair{12, 13}, std::pair{13, 30}}) {
      const at::Tensor hidden = model::HiddenStates(model->config, weights, ids.slice(1, begin, end), cache, &hook);
      parts.push_back(model::Logits(model->config, weights, hidden));
      experts.push_back(hook.Ids().view({2, -1}));
    }
    EXPECT_TRUE(at::equal(at::cat(experts, 1).flatten(), whole));
    EXPECT_LE(Apart(at::cat(parts, 1), expected), 1e-4);
  }
}

TEST_F(ArtifactTest, GreedyTextIsThatOfWholePasses) {
  const auto model = Open(adapter_, base_);
  ASSERT_TRUE(model);
  const model::Parameters weights = model->ComputeCopy();
  const RoutedModel::Masking masking = model->Prepare();
  RoutedHook hook(*model, masking);
  std::vector<int64_t> text = {3, 50, 7};
  const auto done = model::Generate(
      model->config, weights, text, {.new_tokens_max = 20, .stop_ids = {}, .sampling = {}},
      [&](int64_t id) {
        const at::Tensor ids = at::tensor(text, at::kLong).unsqueeze(0);
        EXPECT_EQ(Logits(*model, ids)[0][-1].argmax().item<int64_t>(), id);
        text.push_back(id);
        return true;
      },
      &hook);
  ASSERT_TRUE(done);
  EXPECT_EQ(text.size(), 23U);
}

TEST_F(ArtifactTest, OneMaskNeedsNoRouter) {
  const json done = Refactored("static", {{"experts.kind", "static"}, {"routing.kind", "none"}, {"rounds", 0}});
  ASSERT_FALSE(done.contains("error")) << done["error"];
  const auto model = Open(root_ + "/static/model", "");
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_FALSE(model->router.has_value());
  at::Tensor experts;
  const at::Tensor ids = SomeIds(1, 9);
  EXPECT_EQ(Logits(*model, ids, &experts).size(1), 9);
  EXPECT_FALSE(experts.defined());
}

TEST_F(ArtifactTest, TheSumOfTheWeightsIsThatOfTheirContents) {
  const std::string copy = root_ + "/copy";
  std::filesystem::create_directories(copy);
  std::filesystem::copy_file(base_ + "/config.json", copy + "/config.json");
  const auto config = model::LoadConfig(base_);
  auto weights = model::LoadParameters(base_, *config, at::kFloat);
  ASSERT_TRUE(model::SaveParameters(copy, *config, *weights, {.shard_bytes_max = 9000, .dtype = at::kFloat}));
  EXPECT_TRUE(std::filesystem::exists(copy + "/model.safetensors.index.json"));
  EXPECT_EQ(*model::WeightsSha256(copy), *model::WeightsSha256(base_)) << "other files, equal weights";
  EXPECT_EQ(Message(adapter_, copy), "none");
  const at::NoGradGuard no_grad;
  weights->norm[0] += 0.5;
  std::filesystem::remove_all(copy);
  std::filesystem::create_directories(copy);
  std::filesystem::copy_file(base_ + "/config.json", copy + "/config.json");
  ASSERT_TRUE(model::SaveParameters(copy, *config, *weights, {.dtype = at::kFloat}));
  EXPECT_THAT(Message(adapter_, copy), HasSubstr("E_MODEL: " + copy + ": sha256 of the weights: found"));
}

TEST_F(ArtifactTest, WhatDoesNotFitIsNamed) {
  EXPECT_THAT(Message(adapter_, ""), HasSubstr("E_MODEL: " + adapter_ + ": found no weights, expected a parent"));
  EXPECT_THAT(Message(root_ + "/made/model", base_), HasSubstr("expected no parent"));
  EXPECT_THAT(Message(root_ + "/nowhere", base_), HasSubstr("E_ARTIFACT: " + root_ + "/nowhere/outrider.json"));
  const std::string copy = root_ + "/damaged";
  const auto with = [&](const std::string& from, const std::string& to) {
    std::filesystem::remove_all(copy);
    std::filesystem::copy(adapter_, copy);
    std::string text = Slurp(copy + "/outrider.json");
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    std::ofstream(copy + "/outrider.json") << text.replace(at, from.size(), to);
    return Message(copy, base_);
  };
  EXPECT_THAT(with("\"version\": 1", "\"version\": 2"), HasSubstr("version: found 2, expected 1"));
  EXPECT_THAT(with("\"experts\": 4", "\"experts\": 2"), HasSubstr("E_MASKS"));
  EXPECT_THAT(with("\"experts\": 4", "\"experts\": 99"), HasSubstr("experts: found 99, expected 1 to 16"));
  EXPECT_THAT(with("\"heads\": 4", "\"heads\": 5"), HasSubstr("router.width: found 32, expected a multiple"));
  EXPECT_THAT(with("\"width\": 32", "\"width\": 16"), HasSubstr("E_ROUTER: " + copy + "/outrider_router.safetensors"));
  EXPECT_THAT(with("\"heads\"", "\"head\""), HasSubstr("router.head: found an unknown field"));
  EXPECT_THAT(with("\"scale\": \"sqrt\"", "\"scale\": 3"), HasSubstr("router.scale: found 3, expected none or sqrt"));
  EXPECT_THAT(with("\"tau\": 0.3", "\"tau\": -1"), HasSubstr("tau: found -1"));
  EXPECT_THAT(with("\"version\": 1", "\"files\": {\"outrider_masks.safetensors\": \"00\"}, \"version\": 1"),
              HasSubstr("E_ARTIFACT: " + copy + "/outrider_masks.safetensors: sha256"));
}

}  // namespace
}  // namespace outrider::moe
