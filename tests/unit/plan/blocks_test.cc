#include "plan/blocks.h"

#include <gtest/gtest.h>

#include "support/trace_text.h"

namespace outrider::plan {
namespace {

using trace::TraceFrom;
using trace::TraceGraph;

TEST(Blocks, OneChainNeedsNoChoice) {
  TraceGraph graph;
  graph.Merge(TraceFrom("%0 = a#0() outputs 1\n%1 = b#1() outputs 1"));
  const BlockPlan plan = AssignCases(graph);
  ASSERT_EQ(plan.blocks.size(), 1u);
  EXPECT_TRUE(plan.blocks[0].ends_path);
  ASSERT_EQ(plan.cases.size(), 1u);
  EXPECT_FALSE(plan.cases[0].NeedsChoice());
}

TEST(Blocks, EmptyGraphHasNoCases) { EXPECT_TRUE(AssignCases(TraceGraph{}).cases.empty()); }

// a, then x or y or nothing, then z.
TEST(Blocks, ArmsShareALevelAndSkippingIsSeen) {
  TraceGraph graph;
  graph.Merge(TraceFrom("%0 = a#0() outputs 1 %1 = x#1() outputs 1 %2 = z#3() outputs 1"));
  graph.Merge(TraceFrom("%0 = a#0() outputs 1 %1 = y#2() outputs 1 %2 = z#3() outputs 1"));
  const BlockPlan two = AssignCases(graph);
  ASSERT_EQ(two.cases.size(), 3u);
  EXPECT_EQ(two.cases[1].arms.size(), 2u);
  EXPECT_FALSE(two.cases[1].may_skip);
  EXPECT_TRUE(two.cases[1].NeedsChoice());

  graph.Merge(TraceFrom("%0 = a#0() outputs 1 %1 = z#3() outputs 1"));
  const BlockPlan three = AssignCases(graph);
  ASSERT_EQ(three.cases.size(), 3u);
  EXPECT_FALSE(three.cases[0].may_skip);
  EXPECT_TRUE(three.cases[1].may_skip);
  EXPECT_FALSE(three.cases[2].NeedsChoice());
}

TEST(Blocks, AnEarlyEndSkipsAllThatFollows) {
  TraceGraph graph;
  graph.Merge(TraceFrom("%0 = a#0() outputs 1 %1 = b#1() outputs 1"));
  graph.Merge(TraceFrom("%0 = a#0() outputs 1"));
  const BlockPlan plan = AssignCases(graph);
  ASSERT_EQ(plan.cases.size(), 2u);
  EXPECT_FALSE(plan.cases[0].NeedsChoice());
  EXPECT_TRUE(plan.cases[1].may_skip);
}

TEST(Blocks, AnEmptyPathSkipsAll) {
  TraceGraph graph;
  graph.Merge(TraceFrom("%0 = a#0() outputs 1"));
  graph.Merge({});
  EXPECT_TRUE(AssignCases(graph).cases.at(0).may_skip);
}

}  // namespace
}  // namespace outrider::plan
