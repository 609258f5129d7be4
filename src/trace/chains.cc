#include "trace/chains.h"

#include <algorithm>
#include <utility>

namespace outrider::trace {
namespace {

// The node taken after `node` each time and only then; invalid if there is none.
NodeId OnlyNext(const TraceGraph& graph, NodeId node) {
  const Node& from = graph.At(node);
  if (from.ends_path || from.successors.size() != 1) return NodeId{};
  const NodeId next = from.successors.front().to;
  return graph.At(next).predecessors.size() == 1 ? next : NodeId{};
}

bool BeginsChain(const TraceGraph& graph, NodeId node) {
  const std::vector<NodeId>& before = graph.At(node).predecessors;
  return before.size() != 1 || before.front() == TraceGraph::kStart || OnlyNext(graph, before.front()) != node;
}

}  // namespace

Chains FindChains(const TraceGraph& graph) {
  std::vector<NodeId> heads;
  for (uint32_t i = 1; i < graph.Nodes().size(); ++i) {
    const NodeId node{i};
    if (graph.At(node).alive && BeginsChain(graph, node)) heads.push_back(node);
  }
  std::sort(heads.begin(), heads.end(),
            [&](NodeId a, NodeId b) { return std::pair(graph.At(a).level, a) < std::pair(graph.At(b).level, b); });

  Chains chains;
  chains.of_node.assign(graph.Nodes().size(), Chains::kNone);
  for (const NodeId head : heads) {
    std::vector<NodeId>& chain = chains.nodes.emplace_back();
    for (NodeId node = head; node.IsValid(); node = OnlyNext(graph, node)) {
      chain.push_back(node);
      chains.of_node[node.value] = static_cast<uint32_t>(chains.nodes.size() - 1);
    }
  }
  return chains;
}

}  // namespace outrider::trace
