// Tuning of low-rank pairs beside a frozen parent.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/Functions.h>

#include "moe/adapter.h"
#include "moe/tensor_file.h"
#include "refactor_support.h"

namespace outrider::moe {
namespace {

const json kAdapter = {{"tune", "adapter:4"}, {"expert.rate", 2e-2}, {"weight_decay", 0.0}};

std::map<std::string, at::Tensor> TensorsOf(const std::string& path) {
  std::map<std::string, at::Tensor> out;
  const auto file = LoadTensors(path);
  EXPECT_TRUE(file) << file.error().message;
  for (const NamedTensor& t : file->tensors) out[t.name] = t.tensor;
  return out;
}

TEST_F(RefactorTest, AnAdapterChangesNothingAtFirstAndThenHelps) {
  const json start = {{"rounds", 1}, {"router.steps", 20}, {"expert.steps", 0}};
  json untuned = start;
  untuned.update(kAdapter);
  const json plain = Refactored("plain_start", start), begin = Refactored("adapter_start", untuned);
  ASSERT_FALSE(begin.contains("error")) << begin["error"];
  EXPECT_EQ(plain["eval"], begin["eval"]) << "b is 0";
  const json tuned = Refactored("adapter", kAdapter);
  ASSERT_FALSE(tuned.contains("error")) << tuned["error"];
  EXPECT_LT(Nats(tuned), Nats(begin) - 0.03);
}

TEST_F(RefactorTest, AnAdapterLeavesTheParentAloneAndIsMergedOnExport) {
  json options = kAdapter;
  options.update({{"rounds", 1}, {"expert.steps", 6}, {"experts.kind", "dense"}, {"routing.kind", "none"}});
  ASSERT_FALSE(Refactored("adapter_dense", options).contains("error"));
  const auto parent = TensorsOf(root_ + "/parent/model/model.safetensors");
  const auto merged = TensorsOf(root_ + "/adapter_dense/model/model.safetensors");
  auto state = TensorsOf(root_ + "/adapter_dense/checkpoint-6.safetensors");
  ASSERT_EQ(parent.size(), merged.size());
  int64_t pairs = 0;
  for (const auto& [name, weight] : parent) {
    const std::string pair = "backbone.adapter." + name;
    if (!state.contains(pair + ".a")) {
      EXPECT_TRUE(at::equal(merged.at(name), weight)) << name;
      continue;
    }
    ++pairs;
    EXPECT_FALSE(at::equal(merged.at(name), weight)) << name;
    EXPECT_TRUE(at::equal(merged.at(name), at::addmm(weight, state[pair + ".b"], state[pair + ".a"]))) << name;
  }
  EXPECT_EQ(pairs, 3 * 7) << "q k v o gate up down of three layers";
  EXPECT_FALSE(state.contains("backbone.model.norm.weight")) << "a frozen weight in a checkpoint";
}

TEST_F(RefactorTest, AnAdapterOfFfnsLeavesAttentionAlone) {
  json options = kAdapter;
  options.update({{"rounds", 1}, {"expert.steps", 3}, {"experts.kind", "dense"}, {"routing.kind", "none"}});
  options["adapter.parts"] = "ffn";
  ASSERT_FALSE(Refactored("adapter_ffn", options).contains("error"));
  const auto parent = TensorsOf(root_ + "/parent/model/model.safetensors");
  const auto merged = TensorsOf(root_ + "/adapter_ffn/model/model.safetensors");
  int64_t changed = 0;
  for (const auto& [name, weight] : parent) {
    const bool ffn = name.find(".mlp.") != std::string::npos;
    EXPECT_EQ(at::equal(merged.at(name), weight), !ffn) << name;
    changed += ffn;
  }
  EXPECT_EQ(changed, 3 * 3) << "gate up down of three layers";
}

TEST_F(RefactorTest, AStoppedAdapterRunGoesOnWithTheSameBits) {
  json options = kAdapter;
  options.update({{"rounds", 1}, {"router.steps", 4}, {"expert.steps", 7}});
  const json whole = Refactored("adapter_whole", options);
  ASSERT_FALSE(whole.contains("error")) << whole["error"];
  options["steps_max"] = 6;
  EXPECT_EQ(Refactored("adapter_parts", options), json({{"done", false}, {"position", 6}}));
  EXPECT_EQ(Refactored("adapter_parts", options)["eval"], whole["eval"]);
}

TEST(AdapterOption, OtherTextsAreRefused) {
  for (const char* text : {"adapter", "adapter:0", "adapter:-1", "adapter:4x", "lora:4", ""}) {
    const auto parsed = ParseOptions(json({{"tune", text}}).dump());
    ASSERT_FALSE(parsed) << text;
    EXPECT_THAT(parsed.error().message, testing::HasSubstr("expected full or adapter:R"));
  }
  EXPECT_EQ(AdapterRank(ParseOptions(R"({"tune": "adapter:16"})").value()), 16);
  EXPECT_EQ(AdapterRank(ParseOptions("{}").value()), 0);
  EXPECT_FALSE(ParseOptions(R"({"adapter.parts": "attention"})"));
}

}  // namespace
}  // namespace outrider::moe
