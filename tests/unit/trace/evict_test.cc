#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/trace_text.h"
#include "trace/trace_graph.h"
#include "trace/validate.h"

namespace outrider::trace {
namespace {

using testing::IsEmpty;
using testing::UnorderedElementsAreArray;

// `length` ops in a row that only this `variant` has, behind one op that all share.
Trace Variant(uint32_t variant, uint32_t length) {
  Trace trace{OpRecord{SignatureId{0}, {}, 1}};
  for (uint32_t i = 0; i < length; ++i) {
    const Input previous{Origin::kValue, NodeId{i}, 0};
    trace.push_back({SignatureId{1 + 1'000 * variant + i}, {previous}, 1});
  }
  return trace;
}

std::vector<NodeId> Own(const MergeResult& result) { return {result.nodes.begin() + 1, result.nodes.end()}; }

TEST(Evict, DoesNothingWithinTheLimits) {
  TraceGraph graph;
  graph.Merge(Variant(0, 5));
  EXPECT_THAT(graph.Evict(), IsEmpty());
  EXPECT_EQ(graph.NodeCount(), 7u);
}

TEST(Evict, LeastRecentlyTakenPathLeavesFirst) {
  TraceGraph graph({.nodes_max = 1'000, .paths_max = 2});
  graph.Merge(Variant(0, 3));
  const MergeResult old = graph.Merge(Variant(1, 3));
  graph.Merge(Variant(0, 3));
  graph.Merge(Variant(2, 3));
  EXPECT_EQ(graph.PathCount(), 3u);
  EXPECT_THAT(graph.Evict(), UnorderedElementsAreArray(Own(old)));
  EXPECT_EQ(graph.PathCount(), 2u);
  EXPECT_TRUE(graph.Merge(Variant(0, 3)).covered);
  EXPECT_TRUE(graph.Merge(Variant(2, 3)).covered);
  EXPECT_THAT(Validate(graph), IsEmpty());
}

TEST(Evict, KeepsTheNodeLimitAndNeverReusesIds) {
  TraceGraph graph({.nodes_max = 12, .paths_max = 100});
  for (uint32_t variant = 0; variant < 10; ++variant) {
    const size_t ids = graph.Nodes().size();
    for (const NodeId node : graph.Merge(Variant(variant, 4)).nodes) {
      EXPECT_TRUE(node.value == 1 || node.value >= ids) << "only the shared op is old";
    }
    graph.Evict();
    EXPECT_LE(graph.NodeCount(), 12u);
    EXPECT_TRUE(graph.Merge(Variant(variant, 4)).covered) << "the newest path stays";
    EXPECT_EQ(Describe(Validate(graph)), "");
  }
}

TEST(Evict, APathThatIsTooLongLeavesOnlyStart) {
  TraceGraph graph({.nodes_max = 3, .paths_max = 10});
  graph.Merge(Variant(0, 9));
  EXPECT_EQ(graph.Evict().size(), 10u);
  EXPECT_EQ(graph.NodeCount(), 1u);
  EXPECT_EQ(graph.PathCount(), 0u);
  EXPECT_EQ(Describe(Validate(graph)), "");
  EXPECT_EQ(graph.Merge(Variant(0, 1)).new_nodes, 2u);
}

TEST(Evict, RemovesTheRestOfADroppedWalk) {
  TraceGraph graph({.nodes_max = 100, .paths_max = 1});
  graph.Merge(Variant(0, 2));
  graph.Merge(Variant(1, 2));
  const NodeId shared = graph.Successors(TraceGraph::kStart).front().to;
  graph.Follow(TraceGraph::kStart, shared);
  const NodeId loose = graph.Branch(shared, SignatureId{77}, {}, 1);
  graph.Evict();
  EXPECT_FALSE(graph.At(loose).alive);
  EXPECT_EQ(Describe(Validate(graph)), "");
  EXPECT_TRUE(graph.Merge(Variant(1, 2)).covered);
}

}  // namespace
}  // namespace outrider::trace
