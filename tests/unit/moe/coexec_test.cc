// A refactoring whose steps are co-executed: the same bits, and the outer lane takes the steps.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "refactor_support.h"

namespace outrider::moe {
namespace {

const json kSteps = {{"rounds", 2}, {"router.steps", 8}, {"expert.steps", 12}, {"router.last_steps", 2}};

class CoexecTest : public RefactorTest {
 protected:
  static json Row(const std::string& name, json changes) {
    for (const auto& [key, value] : kSteps.items()) changes.emplace(key, value);
    return Refactored(name, changes);
  }

  // Steps of a stage whose log line names the lane.
  static int64_t StepsIn(const std::string& lane, const std::string& stage, const std::string& name) {
    int64_t count = 0;
    for (const json& line : Log(name)) count += line["stage"] == stage && line["coexec"]["lane"] == lane ? 1 : 0;
    return count;
  }

  // Everything that training leaves behind, but for times and how steps were run.
  static void ExpectEqual(const std::string& left, const std::string& right) {
    json a = Log(left), b = Log(right);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      for (json* line : {&a[i], &b[i]}) {
        line->erase("seconds");
        line->erase("coexec");
      }
      EXPECT_EQ(a[i], b[i]) << left << " against " << right;
    }
    for (const char* file : {"model.safetensors", "outrider_masks.safetensors", "outrider_router.safetensors"}) {
      EXPECT_EQ(Slurp(root_ + "/" + left + "/model/" + file), Slurp(root_ + "/" + right + "/model/" + file)) << file;
    }
  }
};

TEST_F(CoexecTest, TheSameBitsInTheOuterLane) {
  const std::map<std::string, json> rows = {
      {"plain", json::object()},
      {"narrow", {{"dtype", "bfloat16"}}},
      {"activation", {{"coverage.mass", "activation"}}},
      {"regularised", {{"router.stay", 0.05}, {"coverage.granularity", "window:8"}}},
      {"taught", {{"teacher", "parent"}, {"distill", 1.0}}},
      {"joint", {{"router.joint", "coverage"}, {"router.balance", 0.01}}},
      {"one_text", {{"micro_batch", 1}, {"batch", 2}}},
  };
  for (const auto& [name, row] : rows) {
    json changes = row;
    const json eager = Row(name + "_eager", changes);
    ASSERT_FALSE(eager.contains("error")) << name << ": " << eager["error"];
    changes["coexec"] = true;
    const json coexec = Row(name + "_coexec", changes);
    ASSERT_FALSE(coexec.contains("error")) << name << ": " << coexec["error"];
    ExpectEqual(name + "_eager", name + "_coexec");
    EXPECT_EQ(eager["eval"], coexec["eval"]) << name;
    EXPECT_GE(StepsIn("outer", "router", name + "_coexec"), 18 - 4) << name << Log(name + "_coexec").dump(1);
    EXPECT_GE(StepsIn("outer", "expert", name + "_coexec"), 24 - 4) << name << Log(name + "_coexec").dump(1);
    EXPECT_FALSE(Log(name + "_eager")[0].contains("coexec"));
  }
}

TEST_F(CoexecTest, TheLogSaysHowEachStepWasCovered) {
  ASSERT_FALSE(Row("reported", {{"coexec", true}}).contains("error"));
  const json log = Log("reported");
  EXPECT_THAT(log[0]["coexec"]["note"].get<std::string>(), testing::StartsWith("INNER_UNSTABLE"));
  const json& last = log[7]["coexec"];
  EXPECT_EQ(last["lane"], "outer");
  EXPECT_EQ(last["covered_share"], 1.0);
  EXPECT_GT(last["events"], 100);
  EXPECT_FALSE(last.contains("note"));
}

TEST_F(CoexecTest, ARunMayGoOnWithItOrWithoutIt) {
  ASSERT_FALSE(Row("whole", json::object()).contains("error"));
  for (const bool first : {true, false}) {
    const std::string name = first ? "on_then_off" : "off_then_on";
    json half = {{"coexec", first}, {"steps_max", 15}};
    ASSERT_EQ(Row(name, half), json({{"done", false}, {"position", 15}}));
    ASSERT_FALSE(Row(name, {{"coexec", !first}}).contains("error"));
    ExpectEqual("whole", name);
  }
}

}  // namespace
}  // namespace outrider::moe
