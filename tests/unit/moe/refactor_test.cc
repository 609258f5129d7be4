// A whole refactoring of a tiny model on synthetic text: parent, experts, router, tuning, evaluation, model files.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "refactor_support.h"

namespace outrider::moe {
namespace {

using testing::HasSubstr;

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

TEST_F(RefactorTest, UnseenDomainsAreMeasuredAndNotTunedOn) {
  const std::string data = root_ + "/data_unseen";
  std::filesystem::copy(root_ + "/data", data, std::filesystem::copy_options::recursive);
  json header = json::parse(Slurp(data + "/data.json"));
  header["domains"] = {"a", "b"};
  header["unseen"] = {"c"};
  header["splits"]["c"] = {{"test", header["splits"]["c"]["test"]}};
  std::ofstream(data + "/data.json") << header.dump();
  const json changes = {{"data", data}, {"rounds", 1}, {"router.steps", 2}, {"expert.steps", 6}};
  const json result = Refactored("unseen", changes);
  ASSERT_FALSE(result.contains("error")) << result["error"];
  const json& eval = result["eval"];
  EXPECT_EQ(eval["test"]["refactored"].size(), 2);
  ASSERT_TRUE(eval["unseen"]["refactored"].contains("c"));
  EXPECT_EQ(eval["unseen"]["refactored"].size(), 1);
  EXPECT_GT(eval["unseen"]["refactored"]["c"]["load"].size(), 1);
  // The same text as a tuned domain of a row that is not tuned: the same loss, whatever it is called.
  json still = {{"rounds", 1}, {"expert.steps", 0}, {"experts.kind", "dense"}, {"routing.kind", "none"}};
  const json as_test = Refactored("as_test", still);
  still["data"] = data;
  const json as_unseen = Refactored("as_unseen", still);
  EXPECT_EQ(as_test["eval"]["test"]["refactored"]["c"], as_unseen["eval"]["unseen"]["refactored"]["c"]);
}

TEST_F(RefactorTest, HysteresisTradesQualityForStaying) {
  json changes = {{"rounds", 1}, {"router.steps", 30}, {"expert.steps", 10}, {"eval_taus", "0,1,100"}};
  const json result = Refactored("frontier", changes);
  ASSERT_FALSE(result.contains("error")) << result["error"];
  const json& points = result["frontier"];
  ASSERT_EQ(points.size(), 3);
  for (const auto& [name, domain] : result["eval"]["test"]["refactored"].items()) {
    EXPECT_EQ(points[0]["domains"][name]["nats"], domain["nats"]) << "tau 0 is the model itself";
  }
  EXPECT_LE(points[0]["stay_rate"], points[1]["stay_rate"]);
  EXPECT_EQ(points[2]["stay_rate"], 1.0) << "no lead is as large";
  EXPECT_EQ(json::parse(Slurp(root_ + "/frontier/model/outrider.json"))["tau"], 0.0);
  changes["routing.kind"] = "random";
  EXPECT_FALSE(Refactored("no_frontier", changes).contains("frontier"));
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

TEST_F(RefactorTest, ARouterLearnsInStepsOfTheExpertsToo) {
  // The experts stand still: what gets better is the router.
  json changes = {{"rounds", 1}, {"router.steps", 1}, {"expert.steps", 60}, {"expert.rate", 0.0}};
  const json alone = Refactored("alone", changes);
  ASSERT_FALSE(alone.contains("error")) << alone["error"];
  changes["router.joint"] = "coverage";
  const json joint = Refactored("joint", changes);
  ASSERT_FALSE(joint.contains("error")) << joint["error"];
  EXPECT_EQ(joint["tokens"], alone["tokens"]) << "it costs none";
  EXPECT_LT(Nats(joint), Nats(alone) - 0.01);
  changes["steps_max"] = 17;
  EXPECT_FALSE(Refactored("joint_stopped", changes)["done"].get<bool>());
  changes.erase("steps_max");
  EXPECT_EQ(Refactored("joint_stopped", changes)["eval"], joint["eval"]) << "stopped and resumed: the same bits";
  EXPECT_EQ(Slurp(root_ + "/joint/model/outrider_router.safetensors"),
            Slurp(root_ + "/joint_stopped/model/outrider_router.safetensors"));
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
      {"static_three", {{"experts.kind", "static"}, {"routing.kind", "none"}, {"experts.statistic", "best_of_three"}}},
      {"layerwise", {{"routing.kind", "layerwise"}}},
      {"layerwise_published", {{"experts.kind", "published"}, {"routing.kind", "layerwise"}, {"router.loss", "code"}}},
      {"random_mask", {{"experts.kind", "random"}}},
      {"carved", {{"experts.kind", "carved"}, {"routing.kind", "layerwise"}}},
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
  for (const json& layer : json::parse(Slurp(root_ + "/row_carved/experts.json"))["layers"]) {
    EXPECT_EQ(layer["permanent"], 0);  // 2 of 4 experts of 22 channels are half of 88
    EXPECT_EQ(layer["active"], json({22, 22, 22, 22}));
    EXPECT_EQ(layer["union"], 88);
  }
  EXPECT_GT(Log("row_distilled")[2]["divergence"], 0);
  EXPECT_FALSE(std::filesystem::exists(root_ + "/row_contextual/model"));
  EXPECT_TRUE(std::filesystem::exists(root_ + "/row_narrow/model/outrider.json"));
}

TEST_F(RefactorTest, LayersMayKeepDifferentSharesAndTheSumStays) {
  const json result =
      Refactored("ratio", {{"experts.ratio", "measured"}, {"rounds", 1}, {"router.steps", 2}, {"expert.steps", 1}});
  ASSERT_FALSE(result.contains("error")) << result["error"];
  const json measured = json::parse(Slurp(root_ + "/ratio/experts.json"));
  EXPECT_EQ(measured["rise"].size(), 3);
  int64_t channels = 0;
  for (const json& layer : measured["layers"]) {
    const auto active = layer["active"].get<std::vector<int64_t>>();
    EXPECT_EQ(active, std::vector<int64_t>(4, active[0])) << "experts of a layer are equal";
    EXPECT_GE(active[0], 22);
    channels += active[0];
  }
  EXPECT_EQ(channels, 3 * 44) << "layers may differ, the sum does not";
}

TEST_F(RefactorTest, BadInputIsNamed) {
  EXPECT_THAT(Refactored("bad", {{"sequence", 65}})["error"].get<std::string>(),
              HasSubstr("found 65, expected at most 64"));
  EXPECT_THAT(Refactored("bad", {{"router.width", 64}})["error"].get<std::string>(), HasSubstr("at least 64 columns"));
  EXPECT_THAT(Refactored("bad", {{"data", root_ + "/none"}})["error"].get<std::string>(),
              HasSubstr("none/data.json: cannot be read"));
  EXPECT_THAT(
      Refactored("bad", {{"experts.kind", "carved"}, {"routing.kind", "layerwise"}, {"experts.keep", 0.4}})["error"]
          .get<std::string>(),
      HasSubstr("experts.keep: found 35 of 88 channels, which 4 carved experts cannot share out"));
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
