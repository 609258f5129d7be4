#include <gtest/gtest.h>

#include <numeric>

#include "base/check.h"
#include "support/trace_text.h"
#include "trace/trace_graph.h"
#include "trace/validate.h"

namespace outrider::trace {
namespace {

constexpr std::string_view kPlain = R"(
  %0 = mm#0(p0, feed) outputs 1
  %1 = relu#1(%0.0) outputs 1
  %2 = sum#2(%1.0) outputs 1 fetched)";

void ExpectValid(const TraceGraph& graph) {
  const auto violations = Validate(graph);
  EXPECT_TRUE(violations.empty()) << Describe(violations);
}

TEST(Merge, FirstTraceBecomesAChain) {
  TraceGraph graph;
  const MergeResult result = graph.Merge(TraceFrom(kPlain));
  EXPECT_FALSE(result.covered);
  EXPECT_EQ(result.new_nodes, 3u);
  EXPECT_EQ(result.joins, 0u);
  EXPECT_EQ(graph.NodeCount(), 4u);
  EXPECT_TRUE(graph.At(result.nodes[2]).fetched);
  EXPECT_FALSE(graph.At(result.nodes[1]).fetched);
  ExpectValid(graph);
}

TEST(Merge, KnownTraceIsCoveredAndAddsNothing) {
  TraceGraph graph;
  const MergeResult first = graph.Merge(TraceFrom(kPlain));
  const MergeResult second = graph.Merge(TraceFrom(kPlain));
  EXPECT_TRUE(second.covered);
  EXPECT_EQ(second.new_nodes + second.joins, 0u);
  EXPECT_EQ(second.nodes, first.nodes);
  EXPECT_EQ(second.path, first.path);
  EXPECT_EQ(second.wiring, first.wiring);
  EXPECT_EQ(graph.PathCount(), 1u);
}

TEST(Merge, APrefixIsANewPath) {
  TraceGraph graph;
  Trace trace = TraceFrom(kPlain);
  const MergeResult whole = graph.Merge(trace);
  trace.pop_back();
  const MergeResult prefix = graph.Merge(trace);
  EXPECT_FALSE(prefix.covered) << "nothing ended there before";
  EXPECT_EQ(prefix.new_nodes, 0u);
  EXPECT_NE(prefix.path, whole.path);
  EXPECT_TRUE(graph.Merge(trace).covered);
  EXPECT_EQ(graph.PathCount(), 2u);
  ExpectValid(graph);
}

TEST(Merge, EmptyTraceIsAPath) {
  TraceGraph graph;
  EXPECT_FALSE(graph.Merge({}).covered);
  EXPECT_TRUE(graph.Merge({}).covered);
  EXPECT_EQ(graph.PathCount(), 1u);
  ExpectValid(graph);
}

// A layer that is left out in some steps: x stays what it was.
constexpr std::string_view kWithLayer = R"(
  %0 = embed#0(p0, feed) outputs 1
  %1 = layer#1(%0.0, p1) outputs 1
  %2 = norm#2(%1.0) outputs 1
  %3 = head#3(%2.0) outputs 1
  %4 = loss#4(%3.0, feed) outputs 1 fetched)";
constexpr std::string_view kWithoutLayer = R"(
  %0 = embed#0(p0, feed) outputs 1
  %1 = norm#2(%0.0) outputs 1
  %2 = head#3(%1.0) outputs 1
  %3 = loss#4(%2.0, feed) outputs 1 fetched)";

TEST(Merge, SkippedLayerJoinsBehindIt) {
  TraceGraph graph;
  const MergeResult with = graph.Merge(TraceFrom(kWithLayer));
  const MergeResult without = graph.Merge(TraceFrom(kWithoutLayer));
  EXPECT_EQ(without.new_nodes, 0u);
  EXPECT_EQ(without.joins, 1u);
  EXPECT_EQ(without.nodes[1], with.nodes[2]);
  EXPECT_TRUE(graph.At(with.nodes[2]).inputs[0].IsPhi());
  EXPECT_TRUE(graph.Merge(TraceFrom(kWithLayer)).covered);
  EXPECT_TRUE(graph.Merge(TraceFrom(kWithoutLayer)).covered);
  EXPECT_EQ(graph.PathCount(), 2u);
  ExpectValid(graph);
}

TEST(Merge, NoJoinWithoutMatchAhead) {
  TraceGraph graph;
  graph.Merge(TraceFrom(kWithLayer));
  Trace other = TraceFrom(kWithoutLayer);
  other[2].signature = SignatureId{77};
  const MergeResult result = graph.Merge(other);
  EXPECT_EQ(result.joins, 1u) << "only the last op, which nothing follows";
  EXPECT_EQ(result.new_nodes, 2u);
  ExpectValid(graph);
}

TEST(Merge, PhiFurtherDownIsFoundOnTheWay) {
  // Both arms make y, which is only read behind the op where they meet.
  TraceGraph graph;
  const MergeResult left = graph.Merge(TraceFrom(R"(
    %0 = in#0(feed) outputs 1
    %1 = left#1(%0.0) outputs 1
    %2 = mid#3(%0.0) outputs 1
    %3 = use#4(%2.0, %1.0) outputs 1)"));
  const MergeResult result = graph.Merge(TraceFrom(R"(
    %0 = in#0(feed) outputs 1
    %1 = right#2(%0.0) outputs 1
    %2 = mid#3(%0.0) outputs 1
    %3 = use#4(%2.0, %1.0) outputs 1)"));
  EXPECT_EQ(result.new_nodes, 1u) << "right";
  EXPECT_EQ(result.joins, 2u) << "the edge to mid, and the second producer of use";
  EXPECT_EQ(result.nodes.back(), left.nodes.back());
  EXPECT_TRUE(graph.At(result.nodes.back()).inputs[1].IsPhi());
  ExpectValid(graph);
}

TEST(Merge, SameNodesMayBeWiredInTwoWays) {
  // A phi of a and b; later a path has both and reads one of them.
  TraceGraph graph;
  const MergeResult reads_b = graph.Merge(TraceFrom(R"(
    %0 = a#0() outputs 1
    %1 = b#1() outputs 1
    %2 = x#2() outputs 1
    %3 = use#3(%1.0) outputs 1)"));
  const MergeResult skips_b = graph.Merge(TraceFrom(R"(
    %0 = a#0() outputs 1
    %1 = x#2() outputs 1
    %2 = use#3(%0.0) outputs 1)"));
  ASSERT_EQ(skips_b.nodes.back(), reads_b.nodes.back());
  const MergeResult reads_a = graph.Merge(TraceFrom(R"(
    %0 = a#0() outputs 1
    %1 = b#1() outputs 1
    %2 = x#2() outputs 1
    %3 = use#3(%0.0) outputs 1)"));
  EXPECT_EQ(reads_a.nodes, reads_b.nodes);
  EXPECT_EQ(reads_a.path, reads_b.path);
  EXPECT_NE(reads_a.wiring, reads_b.wiring);
}

TEST(Merge, BadTraceIsRefusedAndLeavesTheGraphAlone) {
  TraceGraph graph;
  Trace forward = TraceFrom(kPlain);
  forward[1].inputs[0].producer = NodeId{1};
  EXPECT_THROW(graph.Merge(forward), base::CheckError);
  Trace output = TraceFrom(kPlain);
  output[1].inputs[0].index = 1;
  EXPECT_THROW(graph.Merge(output), base::CheckError);
  EXPECT_EQ(graph.NodeCount(), 1u);
}

TEST(Merge, PathIdsDependOnNothingButTheTraces) {
  TraceGraph one;
  TraceGraph two;
  EXPECT_EQ(one.Merge(TraceFrom(kWithLayer)).path, two.Merge(TraceFrom(kWithLayer)).path);
  EXPECT_EQ(one.Merge(TraceFrom(kWithoutLayer)).wiring, two.Merge(TraceFrom(kWithoutLayer)).wiring);
}

}  // namespace
}  // namespace outrider::trace
