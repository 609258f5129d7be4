#pragma once
// A tiny model on synthetic text, trained a little: the parent of whole refactorings.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/checkpoint.h"
#include "moe/philox.h"
#include "moe/pipeline.h"

namespace outrider::moe {

using nlohmann::json;

inline constexpr int64_t kVocab = 96, kDomains = 3;

inline std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Domain d walks over its own 40 tokens (neighbours share 12) by a rule of its own, with some noise.
inline std::vector<uint16_t> Text(uint32_t domain, uint32_t split, uint32_t tokens) {
  std::vector<uint16_t> ids;
  uint32_t at = domain;
  for (uint32_t t = 0; t < tokens; ++t) {
    const uint64_t bits = Random64(99, Use::kTest, domain, split, t);
    at = (bits & 7) == 0 ? static_cast<uint32_t>(bits >> 8) % 40 : (at * (2 * domain + 3) + domain + 1) % 40;
    ids.push_back(static_cast<uint16_t>(28 * domain + at));
  }
  return ids;
}

inline void WriteData(const std::string& folder) {
  std::filesystem::create_directories(folder + "/tokens");
  json root = {{"format", 1}, {"vocab", kVocab}, {"dtype", "uint16"}, {"domains", {"a", "b", "c"}}};
  for (uint32_t d = 0; d < kDomains; ++d) {
    const std::string name = root["domains"][d];
    for (const auto& [split, tokens] :
         std::map<std::string, uint32_t>{{"train", 6000}, {"valid", 900}, {"test", 900}}) {
      const std::vector<uint16_t> ids = Text(d, split == "train" ? 0 : split == "valid" ? 1 : 2, tokens);
      std::ofstream(folder + "/tokens/" + name + "." + split + ".bin", std::ios::binary)
          .write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(ids.size() * 2));
      std::vector<int64_t> documents;
      for (uint32_t begin = 0; begin < tokens; begin += 150) documents.push_back(begin);
      root["splits"][name][split] = {{"tokens", tokens}, {"documents", documents}};
    }
  }
  std::ofstream(folder + "/data.json") << root.dump();
}

inline void WriteRandomModel(const std::string& folder) {
  std::filesystem::create_directories(folder);
  model::Config config;
  config.model_type = "llama";
  config.hidden_size = 32;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.ffn = 88;
  config.vocab = kVocab;
  config.max_positions = 64;
  config.tied = true;
  config.windows.assign(3, 0);
  std::ofstream(folder + "/config.json") << model::ToJson(config, "float32");
  ASSERT_TRUE(model::SaveParameters(folder, config, model::RandomParameters(config, 5), {.dtype = at::kFloat}));
}

inline json Base(const std::string& root) {
  return {{"data", root + "/data"}, {"seed", 7},           {"calibration.samples", 6}, {"calibration.tokens", 48},
          {"router.width", 32},     {"batch", 12},         {"sequence", 32},           {"micro_batch", 5},
          {"expert.rate", 3e-3},    {"router.rate", 5e-3}, {"checkpoint_steps", 4},    {"eval_tokens", 512},
          {"chunk", 100},           {"experts.count", 4}};
}

inline json RunWith(json options, const json& changes, const OnProgress& progress = {}) {
  options.update(changes);
  const auto parsed = ParseOptions(options.dump());
  if (!parsed) return {{"error", parsed.error().message}};
  const auto result = Refactor(*parsed, progress);
  return result ? json::parse(*result) : json{{"error", result.error().code + ": " + result.error().message}};
}

// Mean nats per token over all domains.
inline double Nats(const json& result, const char* split = "test", const char* mode = "refactored") {
  double nats = 0, tokens = 0;
  for (const auto& [name, domain] : result.at("eval").at(split).at(mode).items()) {
    nats += domain.at("nats").get<double>();
    tokens += domain.at("tokens").get<double>();
  }
  return nats / tokens;
}

class RefactorTest : public testing::Test {
 protected:
  // The parent is the random model after 120 steps of plain training.
  static void SetUpTestSuite() {
    root_ = testing::TempDir() + "outrider_" + testing::UnitTest::GetInstance()->current_test_suite()->name();
    std::filesystem::remove_all(root_);
    WriteData(root_ + "/data");
    WriteRandomModel(root_ + "/random");
    parent_ = RunWith(Base(root_), {{"model", root_ + "/random"},
                                    {"out", root_ + "/parent"},
                                    {"experts.kind", "dense"},
                                    {"routing.kind", "none"},
                                    {"rounds", 1},
                                    {"expert.steps", 120},
                                    {"checkpoint_steps", 1000}});
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(root_); }

  static json Refactored(const std::string& name, json changes, const OnProgress& progress = {}) {
    changes["out"] = root_ + "/" + name;
    if (!changes.contains("model")) changes["model"] = root_ + "/parent/model";
    if (!changes.contains("rounds")) changes.update({{"rounds", 2}, {"router.steps", 20}, {"expert.steps", 15}});
    return RunWith(Base(root_), changes, progress);
  }
  static json Log(const std::string& name) {
    json lines = json::array();
    std::ifstream in(root_ + "/" + name + "/log.jsonl");
    for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
    return lines;
  }

  static inline std::string root_;
  static inline json parent_;
};

}  // namespace outrider::moe
