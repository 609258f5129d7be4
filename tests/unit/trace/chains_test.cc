#include "trace/chains.h"

#include <gtest/gtest.h>

#include "support/trace_text.h"

namespace outrider::trace {
namespace {

std::vector<NodeId> Ids(std::initializer_list<uint32_t> values) {
  std::vector<NodeId> ids;
  for (const uint32_t value : values) ids.emplace_back(value);
  return ids;
}

TEST(Chains, SplitAtBranchesJoinsAndEnds) {
  TraceGraph graph;
  graph.Merge(TraceFrom(R"(
      %0 = a#0() outputs 1
      %1 = b#1() outputs 1
      %2 = left#2() outputs 1
      %3 = left#3() outputs 1
      %4 = tail#4() outputs 1
      %5 = tail#5() outputs 1)"));
  graph.Merge(TraceFrom(R"(
      %0 = a#0() outputs 1
      %1 = b#1() outputs 1
      %2 = right#6() outputs 1
      %3 = tail#4() outputs 1
      %4 = tail#5() outputs 1)"));
  graph.Merge(TraceFrom("%0 = a#0() outputs 1"));

  const Chains chains = FindChains(graph);
  const std::vector<std::vector<NodeId>> expected{Ids({1}), Ids({2}), Ids({3, 4}), Ids({7}), Ids({5, 6})};
  EXPECT_EQ(chains.nodes, expected);
  EXPECT_EQ(chains.of_node, (std::vector<uint32_t>{Chains::kNone, 0, 1, 2, 2, 4, 4, 3}));
}

TEST(Chains, EmptyGraphHasNone) { EXPECT_TRUE(FindChains(TraceGraph{}).nodes.empty()); }

}  // namespace
}  // namespace outrider::trace
