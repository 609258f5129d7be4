#include "serve/goal_age.h"

#include <gtest/gtest.h>

#include "sched/outrider_policy.h"
#include "support/core_run.h"

namespace outrider::serve {
namespace {

constexpr sched::HoldingCase kCase{.experts = 7, .distinct_experts = 3, .running = 33, .decode_tokens = 16};

int AddTimes(GoalAge& age, int steps, double seconds) {
  int offs = 0;
  for (int i = 0; i < steps; ++i) offs += age.Add(seconds) ? 1 : 0;
  return offs;
}

TEST(GoalAge, HoldsNothingBeforeStepsAreMeasured) {
  GoalAge age(0.105, 64, kCase);
  EXPECT_EQ(AddTimes(age, 31, 0.01), 0);
  EXPECT_EQ(age.age(), 0);
  EXPECT_EQ(AddTimes(age, 1, 0.01), 0);
  EXPECT_EQ(age.age(), 10 - 2 - 2 - 1);
}

TEST(GoalAge, ACapStays) {
  GoalAge age(100, 6, kCase), none(100, 0, kCase);
  EXPECT_EQ(AddTimes(age, 64, 0.01), 0);
  EXPECT_EQ(age.age(), 6);
  EXPECT_EQ(AddTimes(none, 64, 0.01), 1);
  EXPECT_EQ(none.age(), 0);
}

TEST(GoalAge, FewSlowStepsCountOnceTheyAreTheNinetyFifthPercentile) {
  GoalAge age(0.105, 64, kCase);
  AddTimes(age, 243, 0.01);
  AddTimes(age, 12, 9);
  AddTimes(age, 1, 0.01);
  EXPECT_EQ(age.age(), 5) << "12 of 256";
  GoalAge slow(0.105, 64, kCase);
  AddTimes(slow, 242, 0.01);
  EXPECT_EQ(AddTimes(slow, 14, 9), 1);
  EXPECT_EQ(slow.age(), 0) << "14 of 256";
}

TEST(GoalAge, EntersOffOncePerTime) {
  GoalAge age(0.105, 64, kCase);
  EXPECT_EQ(AddTimes(age, 320, 0.05), 1);
  EXPECT_EQ(AddTimes(age, 320, 0.01), 0);
  EXPECT_EQ(age.age(), 5);
  EXPECT_EQ(AddTimes(age, 320, 0.05), 1);
}

struct Seen {
  std::vector<int64_t> ages;  // by step
  EngineStats stats;
};

Seen Serve(int64_t goal_ms) {
  Seen seen;
  EngineOptions options = test::TestOptions();
  options.tpot_goal_ms = goal_ms;
  options.limits.age_max = 9;
  int64_t* now_ns = nullptr;
  options.policy = [&](const sched::Snapshot& snapshot) {
    seen.ages.push_back(snapshot.limits.age_max);
    // Longer than a goal of one millisecond allows.
    *now_ns += goal_ms == 1 ? 2'000'000 : 20'000;
    return sched::PlanOutrider(snapshot);
  };
  test::CoreRun run(options);
  now_ns = &run.now_ns;
  Request request;
  request.prompt = {1, 2, 3};
  request.max_tokens = 60;
  const StreamId id = run.Submit(request);
  EXPECT_TRUE(run.ToTheEnd());
  EXPECT_EQ(run.told[id].tokens, test::Reference(request).written);
  seen.stats = run.core.Stats();
  EXPECT_EQ(seen.stats.first_violation, "");
  return seen;
}

TEST(GoalAge, WithoutAGoalTheOptionIsTheAge) {
  const Seen seen = Serve(0);
  EXPECT_EQ(seen.ages, std::vector<int64_t>(60, 9));
  EXPECT_EQ(seen.stats.hold_age_max, 9);
  EXPECT_TRUE(seen.stats.degraded.empty());
}

TEST(GoalAge, AnEngineHoldsAsItsGoalAllows) {
  const Seen wide = Serve(3'600'000);
  EXPECT_EQ(wide.ages.front(), 0);
  EXPECT_EQ(wide.ages.back(), 9);
  EXPECT_EQ(wide.stats.hold_age_max, 9);
  EXPECT_TRUE(wide.stats.degraded.empty());
  const Seen narrow = Serve(1);
  EXPECT_EQ(narrow.ages, std::vector<int64_t>(60, 0));
  EXPECT_EQ(narrow.stats.hold_age_max, 0);
  EXPECT_EQ(narrow.stats.degraded.size(), 2u);
}

TEST(GoalAge, GoalsThatCannotBeHonoured) {
  EngineOptions options = test::TestOptions();
  options.tpot_goal_ms = -1;
  EXPECT_EQ(CompleteOptions(options, test::FakeShape()).error().code, "E_OPTION");
  options.tpot_goal_ms = 50;
  EXPECT_TRUE(CompleteOptions(options, test::FakeShape()).has_value());
  ModelShape dense = test::FakeShape();
  dense.experts = 0;
  EXPECT_TRUE(CompleteOptions(options, dense).has_value()) << "it bounds steps, too";
  options.late_first = EngineOptions::LateFirst::kEnd;
  EXPECT_EQ(CompleteOptions(options, dense).error().code, "E_OPTION") << "late for what?";
  options.ttft_goal_ms = 1'000;
  EXPECT_TRUE(CompleteOptions(options, dense).has_value());
}

}  // namespace
}  // namespace outrider::serve
