#include "spec/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <random>

#include <nlohmann/json.hpp>

namespace outrider::spec {
namespace {

using nlohmann::json;

json Small() {
  return {{"model_type", "llama"},    {"hidden_size", 64},
          {"num_hidden_layers", 5},   {"num_attention_heads", 8},
          {"num_key_value_heads", 4}, {"intermediate_size", 172},
          {"vocab_size", 512},        {"max_position_embeddings", 256},
          {"rms_norm_eps", 1e-5},     {"tie_word_embeddings", true}};
}

std::string Complaint(const json& patch) {
  json root = Small();
  root.update(patch);
  const auto config = ParseConfig(root.dump(), "m/config.json");
  return config ? "" : config.error().code + ": " + config.error().message;
}

TEST(Config, ReadsALlama) {
  const auto config = ParseConfig(Small().dump(), "m/config.json");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->head_dim, 8);
  EXPECT_EQ(config->KvGroup(), 2);
  EXPECT_EQ(config->rope_theta, 10'000);
  EXPECT_TRUE(config->tied);
  EXPECT_FALSE(config->qkv_bias);
  EXPECT_EQ(config->windows, std::vector<int64_t>(5, 0));
}

TEST(Config, SizesThatWouldFillMemoryOrStackAreRefused) {
  EXPECT_THAT(Complaint({{"num_hidden_layers", int64_t{1} << 31}}),
              testing::HasSubstr("num_hidden_layers: found 2147483648, expected a whole number from 1 to 4096"));
  for (const char* bracket : {"[", "{\"a\":"}) {
    std::string text = "{\"model_type\":";
    for (int depth = 0; depth < 200'000; ++depth) text += bracket;
    EXPECT_FALSE(ParseConfig(text, "f")) << "an unfinished text";
  }
  const std::string deep = "{\"model_type\":" + std::string(200'000, '[') + std::string(200'000, ']') + "}";
  EXPECT_THAT(ParseConfig(deep, "f").error().message, testing::HasSubstr("found no JSON object"));
}

TEST(Config, FamiliesDifferInBiasesAndWindows) {
  json root = Small();
  root.update(
      {{"model_type", "qwen2"}, {"use_sliding_window", true}, {"sliding_window", 16}, {"max_window_layers", 3}});
  const auto qwen = ParseConfig(root.dump(), "f");
  ASSERT_TRUE(qwen) << qwen.error().message;
  EXPECT_TRUE(qwen->qkv_bias);
  EXPECT_FALSE(qwen->o_bias);
  EXPECT_EQ(qwen->windows, (std::vector<int64_t>{0, 0, 0, 16, 16}));
  root = Small();
  root.update({{"model_type", "mistral"}, {"sliding_window", 32}});
  EXPECT_EQ(ParseConfig(root.dump(), "f")->windows, std::vector<int64_t>(5, 32));
}

TEST(Config, ReadsBothFormsOfRotarySettings) {
  json root = Small();
  root["rope_theta"] = 5e5;
  root["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};
  const auto before = ParseConfig(root.dump(), "f");
  root = Small();
  root["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 5e5}};
  const auto now = ParseConfig(root.dump(), "f");
  ASSERT_TRUE(before && now);
  EXPECT_EQ(before->rope_scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(*before, *now);
}

TEST(Config, RefusesWhatItDoesNotCompute) {
  EXPECT_EQ(Complaint({{"model_type", "mixtral"}}),
            "E_CONFIG: m/config.json: model_type: found \"mixtral\", expected llama, qwen2 or mistral");
  EXPECT_EQ(Complaint({{"num_local_experts", 8}}),
            "E_CONFIG: m/config.json: num_local_experts: found 8, expected a dense model without this field");
  EXPECT_EQ(Complaint({{"hidden_act", "gelu"}}),
            "E_CONFIG: m/config.json: hidden_act: found \"gelu\", expected \"silu\"");
  EXPECT_EQ(Complaint({{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4}}}}),
            "E_CONFIG: m/config.json: rope_scaling: rope_type: found \"yarn\", expected default, linear or llama3");
  EXPECT_EQ(Complaint({{"architectures", {"LlamaForSequenceClassification"}}}),
            "E_CONFIG: m/config.json: architectures: found [\"LlamaForSequenceClassification\"], expected "
            "[\"LlamaForCausalLM\"]");
}

TEST(Config, RefusesNumbersThatDoNotFit) {
  EXPECT_EQ(Complaint({{"num_key_value_heads", 3}}),
            "E_CONFIG: m/config.json: num_key_value_heads: found 3, expected a divisor of num_attention_heads = 8");
  EXPECT_EQ(Complaint({{"hidden_size", -1}}),
            "E_CONFIG: m/config.json: hidden_size: found -1, expected a whole number from 1 to 4294967296");
  EXPECT_EQ(Complaint({{"vocab_size", nullptr}}),
            "E_CONFIG: m/config.json: vocab_size: found nothing, expected a whole number from 1 to 4294967296");
  EXPECT_EQ(Complaint({{"rms_norm_eps", "small"}}),
            "E_CONFIG: m/config.json: rms_norm_eps: found \"small\", expected a positive number");
  EXPECT_EQ(Complaint({{"eos_token_id", 512}}),
            "E_CONFIG: m/config.json: eos_token_id: found 512, expected an id below vocab_size = 512");
  EXPECT_EQ(Complaint({{"layer_types", {"sliding_attention"}}}).substr(0, 40),
            "E_CONFIG: m/config.json: layer_types: fo");
}

TEST(Config, IsTextAgain) {
  for (const json& patch :
       {json{{"eos_token_id", {1, 2}}, {"bos_token_id", 3}}, json{{"rope_theta", 1e5}, {"attention_bias", true}},
        json{{"model_type", "mistral"}, {"sliding_window", 7}},
        json{{"model_type", "qwen2"}, {"use_sliding_window", true}, {"sliding_window", 9}, {"max_window_layers", 2}},
        json{{"rope_scaling",
              {{"rope_type", "llama3"},
               {"factor", 8},
               {"low_freq_factor", 1},
               {"high_freq_factor", 4},
               {"original_max_position_embeddings", 64}}}}}) {
    json root = Small();
    root.update(patch);
    const auto config = ParseConfig(root.dump(), "f");
    ASSERT_TRUE(config) << config.error().message;
    const auto again = ParseConfig(ToJson(*config, "float32"), "f");
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(*again, *config) << patch;
  }
}

// Bytes changed, taken out and doubled: an answer or a complaint, never an exception.
TEST(Config, SurvivesDamage) {
  json root = Small();
  root["rope_scaling"] = {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 1}, {"high_freq_factor", 4}};
  root["layer_types"] = json(5, "full_attention");
  root["eos_token_id"] = {1, 2};
  const std::string good = root.dump();
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string text = good;
    for (int edits = 1 + static_cast<int>(random() % 3); edits > 0; --edits) {
      const size_t at = random() % text.size();
      const std::string_view piece =
          std::array<std::string_view, 6>{"", "null", "-1", "[]", "{}", "1e400"}[random() % 6];
      if (random() % 2 == 0) {
        text.replace(at, random() % 12, piece);
      } else {
        text[at] = static_cast<char>(random() % 256);
      }
      if (text.empty()) text = "x";
    }
    EXPECT_NO_THROW(refused += !ParseConfig(text, "f")) << text;
  }
  EXPECT_GT(refused, 1000);
}

TEST(Config, NoJsonIsNoConfig) {
  const auto config = ParseConfig("{\"model_type\"", "m/config.json");
  ASSERT_FALSE(config);
  EXPECT_EQ(config.error().message, "m/config.json: found no JSON object, expected the config of a model");
  EXPECT_EQ(LoadConfig("/no/such/folder").error().code, "E_READ");
}

}  // namespace
}  // namespace outrider::spec
