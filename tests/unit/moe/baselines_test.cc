// Whole runs of the baselines with a router per layer, and the traces of all.

#include <gtest/gtest.h>

#include <cstring>
#include <tuple>

#include "refactor_support.h"

namespace outrider::moe {
namespace {

class BaselinesTest : public RefactorTest {};

TEST_F(BaselinesTest, ARunWithARouterPerLayerGoesOnWithTheSameBits) {
  for (const char* kind : {"coverage", "carved"}) {
    const std::string base = std::string("layerwise_") + kind;
    const json options = {
        {"rounds", 2},          {"router.steps", 3},           {"expert.steps", 3},  {"router.last_steps", 2},
        {"experts.kind", kind}, {"routing.kind", "layerwise"}, {"trace_tokens", 300}};
    const json whole = Refactored(base, options);
    ASSERT_FALSE(whole.contains("error")) << whole["error"];
    EXPECT_GT(whole["router_parameters"].get<int64_t>(), 0);
    EXPECT_TRUE(whole.contains("no_model"));
    for (const int64_t stop : {2, 4, 12}) {
      const std::string name = base + std::to_string(stop);
      json changes = options;
      changes["steps_max"] = stop;
      EXPECT_EQ(Refactored(name, changes)["position"], stop);
      changes["steps_max"] = 0;
      const json resumed = Refactored(name, changes);
      ASSERT_FALSE(resumed.contains("error")) << resumed["error"];
      EXPECT_EQ(resumed["eval"], whole["eval"]) << kind << " stopped at " << stop;
      EXPECT_EQ(Slurp(root_ + "/" + name + "/routes.safetensors"), Slurp(root_ + "/" + base + "/routes.safetensors"));
    }
  }
}

// What a trace holds by its header: [offset, bytes] and shape of each domain.
json TraceHeader(const std::string& bytes) {
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  json header = json::parse(bytes.substr(8, length));
  for (auto& [name, tensor] : header.items()) {
    if (name != "__metadata__") tensor["at"] = 8 + length + tensor["data_offsets"][0].get<uint64_t>();
  }
  return header;
}

TEST_F(BaselinesTest, TracesHoldTheIdsOfWholeTextsAndMatchTheStatistics) {
  json options = {{"rounds", 1}, {"router.steps", 4}, {"expert.steps", 1}, {"trace_tokens", 1 << 20}};
  for (const auto& [name, changes, shape] : std::vector<std::tuple<std::string, json, json>>{
           {"trace_one", json::object(), json({512})},
           {"trace_layers", {{"routing.kind", "layerwise"}}, json({3, 512})},
           {"trace_top", {{"routing.kind", "layerwise"}, {"experts.kind", "carved"}}, json({3, 512, 2})}}) {
    json with = options;
    with.update(changes);
    const json result = Refactored(name, with);
    ASSERT_FALSE(result.contains("error")) << result["error"];
    const std::string bytes = Slurp(root_ + "/" + name + "/routes.safetensors");
    const json header = TraceHeader(bytes);
    EXPECT_EQ(header["__metadata__"], json({{"format", "1"}, {"split", "test"}, {"experts", "4"}, {"sequence", "32"}}));
    const size_t layers = shape.size() == 1 ? 1 : 3, top = shape.size() == 3 ? 2 : 1;
    for (const char* domain : {"a", "b", "c"}) {
      EXPECT_EQ(header[domain]["shape"], shape);
      const json& measured = result["eval"]["test"]["refactored"][domain];
      EXPECT_EQ(measured.contains("layers"), layers > 1);
      for (size_t l = 0; l < layers; ++l) {
        const json& routes = layers > 1 ? measured["layers"][l] : measured;
        std::vector<int64_t> load(4, 0);
        int64_t stays = 0;
        for (size_t t = 0; t < 512; ++t) {
          const char* ids = bytes.data() + header[domain]["at"].get<size_t>() + (l * 512 + t) * top;
          ++load.at(static_cast<size_t>(ids[0]));
          if (top == 2) {
            EXPECT_NE(ids[0], ids[1]);
          }
          stays += t % 32 != 0 && ids[0] == *(ids - top) ? 1 : 0;
        }
        EXPECT_EQ(routes["load"], json(load)) << name << domain << l;
        EXPECT_DOUBLE_EQ(routes["stay_rate"].get<double>(), static_cast<double>(stays) / (16 * 31));
      }
    }
  }
  options["trace_tokens"] = 70;
  Refactored("trace_short", options);
  EXPECT_EQ(TraceHeader(Slurp(root_ + "/trace_short/routes.safetensors"))["b"]["shape"], json({64}));
  options["trace_tokens"] = 0;
  Refactored("trace_none", options);
  EXPECT_FALSE(std::filesystem::exists(root_ + "/trace_none/routes.safetensors"));
}

TEST_F(BaselinesTest, MasksAtRandomShareChannelsByChance) {
  for (const char* routing : {"router", "random"}) {
    const json result = Refactored(std::string("random_") + routing, {{"experts.kind", "random"},
                                                                      {"routing.kind", routing},
                                                                      {"rounds", 1},
                                                                      {"router.steps", 2},
                                                                      {"expert.steps", 2}});
    ASSERT_FALSE(result.contains("error")) << result["error"];
    EXPECT_EQ(result["tokens"]["expert"], 2 * 12 * 32);
  }
  EXPECT_EQ(Slurp(root_ + "/random_router/experts.json"), Slurp(root_ + "/random_random/experts.json"));
  for (const json& layer : json::parse(Slurp(root_ + "/random_router/experts.json"))["layers"]) {
    EXPECT_EQ(layer["active"], json({44, 44, 44, 44}));
    EXPECT_NEAR(layer["delta"].get<double>(), 22, 5) << "another expert lacks half of an expert's channels";
  }
}

TEST_F(BaselinesTest, RoutersPerLayerLearn) {
  const json trained =
      Refactored("trained", {{"routing.kind", "layerwise"}, {"rounds", 1}, {"router.steps", 40}, {"expert.steps", 0}});
  const json random = Refactored("at_random", {{"routing.kind", "random"}, {"rounds", 1}, {"expert.steps", 0}});
  ASSERT_FALSE(trained.contains("error")) << trained["error"];
  EXPECT_LT(Nats(trained), Nats(random) - 0.02);
  const json log = Log("trained");
  EXPECT_LT(log[39]["loss"], log[0]["loss"].get<double>() - 0.1);
}

}  // namespace
}  // namespace outrider::moe
