// A whole refactoring of a tiny model on synthetic text: parent, experts, router, tuning, evaluation, model files.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

#include <nlohmann/json.hpp>

#include "model/checkpoint.h"
#include "moe/philox.h"
#include "moe/pipeline.h"

namespace outrider::moe {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr int64_t kVocab = 96, kDomains = 3;

std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Domain d walks over its own 40 tokens (neighbours share 12) by a rule of its own, with some noise.
std::vector<uint16_t> Text(uint32_t domain, uint32_t split, uint32_t tokens) {
  std::vector<uint16_t> ids;
  uint32_t at = domain;
  for (uint32_t t = 0; t < tokens; ++t) {
    const uint64_t bits = Random64(99, Use::kTest, domain, split, t);
    at = (bits & 7) == 0 ? static_cast<uint32_t>(bits >> 8) % 40 : (at * (2 * domain + 3) + domain + 1) % 40;
    ids.push_back(static_cast<uint16_t>(28 * domain + at));
  }
  return ids;
}

void WriteData(const std::string& folder) {
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

void WriteRandomModel(const std::string& folder) {
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

json Base(const std::string& root) {
  return {{"data", root + "/data"}, {"seed", 7},           {"calibration.samples", 6}, {"calibration.tokens", 48},
          {"router.width", 32},     {"batch", 12},         {"sequence", 32},           {"micro_batch", 5},
          {"expert.rate", 3e-3},    {"router.rate", 5e-3}, {"checkpoint_steps", 4},    {"eval_tokens", 512},
          {"chunk", 100},           {"experts.count", 4}};
}

json RunWith(json options, const json& changes, const OnProgress& progress = {}) {
  options.update(changes);
  const auto parsed = ParseOptions(options.dump());
  if (!parsed) return {{"error", parsed.error().message}};
  const auto result = Refactor(*parsed, progress);
  return result ? json::parse(*result) : json{{"error", result.error().code + ": " + result.error().message}};
}

// Mean nats per token over all domains.
double Nats(const json& result, const char* split = "test", const char* mode = "refactored") {
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
    root_ = testing::TempDir() + "outrider_refactor";
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

  static std::string root_;
  static json parent_;
};

std::string RefactorTest::root_;
json RefactorTest::parent_;

TEST_F(RefactorTest, TheParentLearnsAndIsWrittenAsAPlainModel) {
  ASSERT_FALSE(parent_.contains("error")) << parent_["error"];
  EXPECT_LT(Nats(parent_), 2.4) << "from ln 96 = 4.6";
  EXPECT_EQ(Nats(parent_), Nats(parent_, "test", "all_channels"));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/parent/model/outrider.json"));
  const model::Config config = model::LoadConfig(root_ + "/parent/model").value();
  EXPECT_TRUE(model::LoadParameters(root_ + "/parent/model", config, at::kFloat));
}

TEST_F(RefactorTest, RoutedExpertsBeatRandomIdsAndTuningHelps) {
  const json untuned = Refactored("untuned", {{"rounds", 1}, {"router.steps", 60}, {"expert.steps", 0}});
  const json random = Refactored("random", {{"rounds", 1}, {"expert.steps", 0}, {"routing.kind", "random"}});
  const json tuned = Refactored("tuned", json::object());
  ASSERT_FALSE(untuned.contains("error")) << untuned["error"];
  ASSERT_FALSE(random.contains("error")) << random["error"];
  ASSERT_FALSE(tuned.contains("error")) << tuned["error"];
  EXPECT_LT(Nats(untuned), Nats(random) - 0.02);
  EXPECT_LT(Nats(tuned), Nats(untuned) - 0.05);
  // Masks are a matter of the parent, data and seed alone.
  const json experts = json::parse(Slurp(root_ + "/tuned/experts.json"));
  EXPECT_EQ(experts["hash"], json::parse(Slurp(root_ + "/random/experts.json"))["hash"]);
  for (const json& layer : experts["layers"]) EXPECT_EQ(layer["active"], json({44, 44, 44, 44}));
  const json log = Log("tuned");
  EXPECT_EQ(log.size(), 2 * 35);
  EXPECT_LT(log[19]["loss"], log[0]["loss"]) << "router";
  EXPECT_LT(log[34]["loss"], log[20]["loss"]) << "experts";
}

TEST_F(RefactorTest, DocumentsAddUpAndRoutesAreCounted) {
  const json result = Refactored("documents", {{"rounds", 1}, {"router.steps", 2}, {"expert.steps", 0}});
  ASSERT_FALSE(result.contains("error")) << result["error"];
  for (const auto& [name, domain] : result["eval"]["test"]["refactored"].items()) {
    int64_t tokens = 0, load = 0;
    double nats = 0;
    int64_t last = -1;
    for (const json& document : domain["documents"]) {
      EXPECT_GT(document[0].get<int64_t>(), last);
      last = document[0];
      tokens += document[1].get<int64_t>();
      nats += document[2].get<double>();
    }
    EXPECT_EQ(tokens, domain["tokens"]);
    EXPECT_NEAR(nats, domain["nats"].get<double>(), 1e-6 * nats);
    for (const json& n : domain["load"]) load += n.get<int64_t>();
    EXPECT_EQ(load, tokens);
  }
}

TEST_F(RefactorTest, AStoppedRunGoesOnWithTheSameBits) {
  const json options = {{"rounds", 2}, {"router.steps", 5}, {"expert.steps", 6}, {"router.last_steps", 3}};
  const json whole = Refactored("whole", options);
  ASSERT_FALSE(whole.contains("error")) << whole["error"];
  for (const int64_t stop : {1, 5, 8, 16, 22}) {
    const std::string name = "stopped" + std::to_string(stop);
    // The process ends at once: the exception leaves whatever the last checkpoint left.
    json changes = options;
    EXPECT_THROW(Refactored(name, changes,
                            [&](const Progress& p) -> bool {
                              if (p.position == stop) throw std::runtime_error("killed");
                              return true;
                            }),
                 std::runtime_error);
    const json resumed = Refactored(name, changes);
    ASSERT_FALSE(resumed.contains("error")) << resumed["error"];
    EXPECT_EQ(resumed["eval"], whole["eval"]) << "stopped at " << stop;
    json left = Log(name), right = Log("whole");
    ASSERT_EQ(left.size(), right.size());
    for (size_t i = 0; i < left.size(); ++i) {
      left[i].erase("seconds");
      right[i].erase("seconds");
      EXPECT_EQ(left[i], right[i]);
    }
    for (const char* file : {"model.safetensors", "outrider_masks.safetensors", "outrider_router.safetensors"}) {
      EXPECT_EQ(Slurp(root_ + "/" + name + "/model/" + file), Slurp(root_ + "/whole/model/" + file)) << file;
    }
  }
}

TEST_F(RefactorTest, BudgetsStopBehindACheckpointAndOtherOptionsAreRefused) {
  json options = {{"rounds", 1}, {"router.steps", 3}, {"expert.steps", 3}, {"steps_max", 4}};
  EXPECT_EQ(Refactored("budget", options), json({{"done", false}, {"position", 4}}));
  options["expert.rate"] = 0.5;
  EXPECT_THAT(Refactored("budget", options)["error"].get<std::string>(),
              HasSubstr("checkpoint-4.safetensors: expert.rate: found 0.003, expected 0.5"));
  options["expert.rate"] = 3e-3;
  EXPECT_TRUE(Refactored("budget", options)["done"].get<bool>());
}

TEST_F(RefactorTest, EveryRowOfTheComparisonRuns) {
  const std::map<std::string, json> rows = {
      {"published", {{"experts.kind", "published"}, {"router.loss", "code"}}},
      {"paper",
       {{"experts.kind", "published"}, {"router.loss", "paper"}, {"router.scale", "none"}, {"router.embed", "own"}}},
      {"code_abs", {{"experts.kind", "published"}, {"router.loss", "code_abs"}}},
      {"domain", {{"experts.kind", "published"}, {"experts.statistic", "l1_out"}, {"routing.kind", "domain"}}},
      {"windows",
       {{"coverage.granularity", "window:8"},
        {"routing.tau", 1.0},
        {"router.attn", false},
        {"router.stay", 0.05},
        {"router.balance", 0.01}}},
      {"documents_as_units", {{"coverage.granularity", "document"}}},
      {"static", {{"experts.kind", "static"}, {"routing.kind", "none"}, {"experts.statistic", "best"}}},
      {"dense", {{"experts.kind", "dense"}, {"routing.kind", "none"}}},
      {"contextual", {{"experts.kind", "contextual"}, {"routing.kind", "none"}}},
      {"distilled", {{"teacher", "parent"}, {"distill", 1.0}}},
      {"narrow", {{"dtype", "bfloat16"}}},
  };
  for (const auto& [name, row] : rows) {
    json changes = row;
    changes.update({{"rounds", 1}, {"router.steps", 2}, {"expert.steps", 2}});
    const json result = Refactored("row_" + name, changes);
    ASSERT_FALSE(result.contains("error")) << name << ": " << result["error"];
    EXPECT_LT(Nats(result), 4.6) << name;
    EXPECT_EQ(result["tokens"]["expert"], 2 * 12 * 32);
  }
  // Experts of different domains differ, though they overlap.
  for (const json& layer : json::parse(Slurp(root_ + "/row_paper/experts.json"))["layers"]) {
    EXPECT_GT(layer["delta"], 0);
    EXPECT_GT(layer["permanent"], 0);
    EXPECT_EQ(layer["active"], json({44, 44, 44}));
  }
  const json chosen = json::parse(Slurp(root_ + "/row_static/experts.json"));
  for (const auto& [name, nats] : chosen["candidates"].items())
    EXPECT_GE(nats, chosen["candidates"][chosen["statistic"]]);
  EXPECT_GT(Log("row_distilled")[2]["divergence"], 0);
  EXPECT_FALSE(std::filesystem::exists(root_ + "/row_contextual/model"));
  EXPECT_TRUE(std::filesystem::exists(root_ + "/row_narrow/model/outrider.json"));
}

TEST_F(RefactorTest, BadInputIsNamed) {
  EXPECT_THAT(Refactored("bad", {{"sequence", 65}})["error"].get<std::string>(),
              HasSubstr("found 65, expected at most 64"));
  EXPECT_THAT(Refactored("bad", {{"router.width", 64}})["error"].get<std::string>(), HasSubstr("at least 64 columns"));
  EXPECT_THAT(Refactored("bad", {{"data", root_ + "/none"}})["error"].get<std::string>(),
              HasSubstr("none/data.json: cannot be read"));
  EXPECT_THAT(Refactored("bad", {{"experts.count", 2}, {"routing.kind", "domain"}})["error"].get<std::string>(),
              HasSubstr("one expert per domain: 3"));
}

TEST_F(RefactorTest, LossesThatNeedOwnChannelsSaySo) {
  const json all = {{"experts.kind", "published"}, {"router.loss", "code"}, {"experts.keep", 1.0}};
  EXPECT_THAT(Refactored("all", all)["error"].get<std::string>(), HasSubstr("layer 0: found 0 channels per expert"));
}

TEST(Stages, RoundsAndALastRouterStage) {
  Options options;
  options.rounds = 2;
  options.router_steps = 3;
  options.expert_steps = 4;
  options.router_last_steps = 5;
  EXPECT_EQ(StagesOf(options), (std::vector<Stage>{{StageKind::kRouter, 0, 3},
                                                   {StageKind::kExpert, 0, 4},
                                                   {StageKind::kRouter, 1, 3},
                                                   {StageKind::kExpert, 1, 4},
                                                   {StageKind::kRouter, 2, 5}}));
  options.routing_kind = "none";
  EXPECT_EQ(StagesOf(options), (std::vector<Stage>{{StageKind::kExpert, 0, 4}, {StageKind::kExpert, 1, 4}}));
}

}  // namespace
}  // namespace outrider::moe
