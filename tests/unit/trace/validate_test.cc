// Each rule is broken on purpose, once, in a graph that is valid otherwise.

#include "trace/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "support/trace_text.h"

namespace outrider::trace {
namespace {

// START -> 1 -> 2 -> 3, and 1 -> 4 -> 3 where 3 has a phi.
std::vector<Node> SoundNodes() {
  TraceGraph graph;
  for (const Trace& trace : TracesFrom(R"(
         trace
         %0 = a#0(feed) outputs 1
         %1 = b#1(%0.0) outputs 1
         %2 = d#3(%1.0) outputs 1
         trace
         %0 = a#0(feed) outputs 1
         %1 = c#2(%0.0) outputs 1
         %2 = d#3(%1.0) outputs 1)")) {
    graph.Merge(trace);
  }
  return {graph.Nodes().begin(), graph.Nodes().end()};
}

struct Damage {
  std::string name;
  Rule rule;
  std::function<void(std::vector<Node>&)> apply;
};

class BrokenGraph : public testing::TestWithParam<Damage> {};

TEST(Validate, SoundGraphHasNoViolations) {
  const std::vector<Node> nodes = SoundNodes();
  ASSERT_EQ(nodes.size(), 5u);
  ASSERT_TRUE(nodes[3].inputs[0].IsPhi());
  EXPECT_EQ(Describe(Validate(nodes)), "");
}

TEST_P(BrokenGraph, IsReported) {
  std::vector<Node> nodes = SoundNodes();
  GetParam().apply(nodes);
  std::vector<Rule> rules;
  for (const Violation& violation : Validate(nodes)) rules.push_back(violation.rule);
  EXPECT_THAT(rules, testing::Contains(GetParam().rule));
}

Input Value(uint32_t node, uint32_t index = 0) { return {Origin::kValue, NodeId{node}, index}; }

INSTANTIATE_TEST_SUITE_P(
    Rules, BrokenGraph,
    testing::Values(
        Damage{"StartHasInputs", Rule::kStart, [](auto& n) { n[0].inputs.resize(1); }},
        Damage{"NoNodes", Rule::kStart, [](auto& n) { n.clear(); }},
        Damage{"EdgeToNowhere", Rule::kEdgeTarget, [](auto& n) { n[1].successors[0].to = NodeId{99}; }},
        Damage{"EdgeToStart", Rule::kEdgeTarget, [](auto& n) { n[1].successors[0].to = NodeId{0}; }},
        Damage{"EdgeToDeadNode", Rule::kEdgeTarget, [](auto& n) { n[4].alive = false; }},
        Damage{"EdgeTwice", Rule::kEdgeTarget, [](auto& n) { n[1].successors.push_back({NodeId{2}}); }},
        Damage{"EdgeGoesDown", Rule::kEdgeUp, [](auto& n) { n[3].successors.push_back({NodeId{1}}); }},
        Damage{"PredecessorMissing", Rule::kMirrored, [](auto& n) { n[3].predecessors.pop_back(); }},
        Damage{"PredecessorTooMany", Rule::kMirrored, [](auto& n) { n[2].predecessors.emplace_back(4); }},
        Damage{"TwinSuccessors", Rule::kDistinct, [](auto& n) { n[4].signature = n[2].signature; }},
        Damage{"EmptySlot", Rule::kSlot, [](auto& n) { n[2].inputs[0].producers.clear(); }},
        Damage{"MixedSlot", Rule::kSlot, [](auto& n) { n[3].inputs[0].producers.push_back({Origin::kFeed, {}, 0}); }},
        Damage{"ProducerTwice", Rule::kSlot, [](auto& n) { n[3].inputs[0].producers.push_back(Value(2)); }},
        Damage{"ProducerIsNoNode", Rule::kProducer, [](auto& n) { n[2].inputs[0].producers = {Value(50)}; }},
        Damage{"ProducerIsAbove", Rule::kProducer, [](auto& n) { n[2].inputs[0].producers = {Value(3)}; }},
        Damage{"ProducerHasNoOutput", Rule::kProducer, [](auto& n) { n[2].inputs[0].producers = {Value(1, 5)}; }},
        Damage{"ProducerOnNoPath", Rule::kAvailable,
               [](auto& n) {
                 n[3].inputs[0].producers = {Value(4)};
                 n[4].successors.clear();
                 n[4].ends_path = true;
                 std::erase(n[3].predecessors, NodeId{4});
               }},
        Damage{"Unreachable", Rule::kReachable,
               [](auto& n) {
                 std::erase_if(n[1].successors, [](const Edge& edge) { return edge.to == NodeId{4}; });
                 n[4].predecessors.clear();
               }},
        Damage{"DeadEnd", Rule::kEnds, [](auto& n) { n[3].ends_path = false; }}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace outrider::trace
