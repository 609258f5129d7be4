// Growing and walking a graph step by step, as a cursor does.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "trace/trace_graph.h"

namespace outrider::trace {
namespace {

using testing::ElementsAre;

constexpr NodeId kStart = TraceGraph::kStart;
constexpr SignatureId kMul{0}, kAdd{1}, kSum{2};
const Input kFeed{Origin::kFeed, {}, 0};

Input Persistent(uint32_t id) { return {Origin::kPersistent, {}, id}; }
Input Output(NodeId node, uint32_t index = 0) { return {Origin::kValue, node, index}; }

std::vector<NodeId> Targets(const TraceGraph& graph, NodeId from) {
  std::vector<NodeId> targets;
  for (const Edge& edge : graph.Successors(from)) targets.push_back(edge.to);
  return targets;
}

TEST(Walk, BranchMakesAnAcceptingSuccessor) {
  TraceGraph graph;
  const std::vector<Input> inputs{Persistent(3), kFeed};
  const NodeId node = graph.Branch(kStart, kMul, inputs, 1);
  graph.EndPath(node);

  EXPECT_THAT(Targets(graph, kStart), ElementsAre(node));
  EXPECT_TRUE(graph.Accepts(node, inputs));
  EXPECT_FALSE(graph.Accepts(node, std::vector<Input>{Persistent(4), kFeed}));
  EXPECT_FALSE(graph.Accepts(node, std::vector<Input>{Persistent(3)}));
  EXPECT_EQ(graph.At(node).level, 1u);
  EXPECT_TRUE(graph.At(node).ends_path);
  EXPECT_EQ(graph.NodeCount(), 2u);
  EXPECT_EQ(graph.PathCount(), 1u);
}

TEST(Walk, FollowCountsAndMovesTheEdgeToTheFront) {
  TraceGraph graph;
  const NodeId first = graph.Branch(kStart, kMul, {}, 1);
  graph.EndPath(first);
  const NodeId second = graph.Branch(kStart, kAdd, {}, 1);
  graph.EndPath(second);
  EXPECT_THAT(Targets(graph, kStart), ElementsAre(second, first));

  graph.Follow(kStart, first);
  graph.EndPath(first);
  EXPECT_THAT(Targets(graph, kStart), ElementsAre(first, second));
  EXPECT_EQ(graph.Successors(kStart)[0].taken, 2u);
  EXPECT_EQ(graph.Successors(kStart)[1].taken, 1u);
  EXPECT_EQ(graph.At(first).visits, 2u);
  EXPECT_EQ(graph.At(kStart).visits, 3u);
  EXPECT_EQ(graph.PathCount(), 2u);
}

TEST(Walk, JoinNeedsAHigherLevel) {
  TraceGraph graph;
  const NodeId low = graph.Branch(kStart, kMul, {}, 1);
  graph.EndPath(low);
  const NodeId other = graph.Branch(kStart, kAdd, {}, 1);
  EXPECT_EQ(graph.FindJoin(other, kMul, {}), std::nullopt) << "both are on level 1";
  graph.EndPath(other);
}

// START -> mul -> add -> sum, to be joined at sum.
struct Diamond {
  TraceGraph graph;
  NodeId left, tail;
  Diamond() {
    left = graph.Branch(kStart, kMul, {}, 1);
    tail = graph.Branch(left, kSum, std::vector{Output(left), Persistent(1)}, 1);
    graph.EndPath(tail);
  }
};

TEST(Walk, JoinMakesAPhi) {
  Diamond d;
  const NodeId right = d.graph.Branch(kStart, kAdd, {}, 1);
  const std::vector<Input> inputs{Output(right), Persistent(1)};
  ASSERT_EQ(d.graph.FindJoin(right, kSum, inputs), d.tail);
  d.graph.Join(right, d.tail, inputs);
  d.graph.EndPath(d.tail);

  EXPECT_TRUE(d.graph.At(d.tail).inputs[0].IsPhi());
  EXPECT_FALSE(d.graph.At(d.tail).inputs[1].IsPhi());
  EXPECT_TRUE(d.graph.Accepts(d.tail, inputs));
  EXPECT_TRUE(d.graph.Accepts(d.tail, std::vector{Output(d.left), Persistent(1)}));
  EXPECT_EQ(d.graph.At(d.tail).predecessors.size(), 2u);
}

TEST(Walk, PersistentAndFeedInputsMustBeKnownToJoin) {
  Diamond d;
  const NodeId right = d.graph.Branch(kStart, kAdd, {}, 1);
  EXPECT_EQ(d.graph.FindJoin(right, kSum, std::vector{Output(right), Persistent(2)}), std::nullopt);
  EXPECT_EQ(d.graph.FindJoin(right, kSum, std::vector{Output(right), kFeed}), std::nullopt);
  EXPECT_EQ(d.graph.FindJoin(right, kSum, std::vector{kFeed, Persistent(1)}), std::nullopt);
  EXPECT_EQ(d.graph.FindJoin(right, kSum, std::vector{Output(right)}), std::nullopt);
}

TEST(Walk, NoPhiOfTwoValuesOfOnePath) {
  TraceGraph graph;
  const NodeId a = graph.Branch(kStart, kMul, {}, 1);
  const NodeId b = graph.Branch(a, kAdd, {}, 1);
  const NodeId reads_a = graph.Branch(b, kSum, std::vector{Output(a)}, 1);
  graph.EndPath(reads_a);

  graph.Follow(kStart, a);
  graph.Follow(a, b);
  EXPECT_EQ(graph.FindJoin(b, kSum, std::vector{Output(b)}), std::nullopt);
  const NodeId reads_b = graph.Branch(b, kSum, std::vector{Output(b)}, 1);
  graph.EndPath(reads_b);
  EXPECT_NE(reads_a, reads_b);
}

TEST(Walk, ADroppedPathLeavesNoMarks) {
  Diamond d;
  d.graph.Follow(kStart, d.left);  // never ended
  const NodeId right = d.graph.Branch(kStart, kAdd, {}, 1);
  EXPECT_EQ(d.graph.FindJoin(right, kSum, std::vector{Output(right), Persistent(1)}), d.tail);
  d.graph.Join(right, d.tail, std::vector{Output(right), Persistent(1)});
  d.graph.EndPath(d.tail);
  EXPECT_EQ(d.graph.PathCount(), 2u);
}

TEST(Walk, JoinKeepsSuccessorsDistinct) {
  TraceGraph graph;
  // a -> m(a), and b -> m'(b) on a higher level, behind another op.
  const NodeId a = graph.Branch(kStart, kMul, {}, 2);
  const NodeId m_of_a = graph.Branch(a, kSum, std::vector{Output(a, 0)}, 1);
  graph.EndPath(m_of_a);
  const NodeId b = graph.Branch(kStart, kAdd, {}, 1);
  const NodeId c = graph.Branch(b, kAdd, {}, 1);
  const NodeId m_of_b = graph.Branch(c, kSum, std::vector{Output(b)}, 1);
  graph.EndPath(m_of_b);

  // From a, m(a.1) goes to m'(b), next to m(a.0).
  graph.Follow(kStart, a);
  EXPECT_EQ(graph.FindJoin(a, kSum, std::vector{Output(a, 1)}), m_of_b);
  graph.Join(a, m_of_b, std::vector{Output(a, 1)});
  graph.EndPath(m_of_b);

  // Reading a.0 from a level where m'(b | a.1) is the only candidate must not make it a second home of m(a.0).
  const NodeId d = graph.Branch(kStart, SignatureId{9}, {}, 1);
  const NodeId e = graph.Branch(d, SignatureId{9}, {}, 1);
  EXPECT_EQ(graph.FindJoin(e, kSum, std::vector{Output(a, 0)}), std::nullopt);
  EXPECT_EQ(graph.FindJoin(e, kSum, std::vector{Output(b)}), m_of_b);
}

TEST(Walk, ExplicitMisuseIsRefused) {
  Diamond d;
  EXPECT_THROW(d.graph.Join(d.tail, d.left, {}), base::CheckError);
  EXPECT_THROW(d.graph.EndPath(d.left), base::CheckError) << "no path is open";
  EXPECT_THROW(TraceGraph({.nodes_max = 0}), base::CheckError);
}

}  // namespace
}  // namespace outrider::trace
