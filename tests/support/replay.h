#pragma once
// Walks a graph along a trace, independently of TraceGraph::Merge.

#include <optional>
#include <vector>

#include "trace/trace_graph.h"

namespace outrider::trace {

inline std::vector<Input> Renamed(const OpRecord& op, const std::vector<NodeId>& nodes) {
  std::vector<Input> inputs = op.inputs;
  for (Input& input : inputs) {
    if (input.origin == Origin::kValue) input.producer = nodes[input.producer.value];
  }
  return inputs;
}

// Successors that accept the call.
inline std::vector<NodeId> Accepting(const TraceGraph& graph, NodeId from, SignatureId signature,
                                     const std::vector<Input>& inputs) {
  std::vector<NodeId> accepting;
  for (const Edge& edge : graph.Successors(from)) {
    if (graph.At(edge.to).signature == signature && graph.Accepts(edge.to, inputs)) accepting.push_back(edge.to);
  }
  return accepting;
}

// The nodes of the trace; nothing if at some op not exactly one successor accepts it, or if no path ends at the last.
inline std::optional<std::vector<NodeId>> Replay(const TraceGraph& graph, const Trace& trace) {
  std::vector<NodeId> nodes;
  NodeId at = TraceGraph::kStart;
  for (const OpRecord& op : trace) {
    const std::vector<NodeId> accepting = Accepting(graph, at, op.signature, Renamed(op, nodes));
    if (accepting.size() != 1) return std::nullopt;
    at = accepting.front();
    nodes.push_back(at);
  }
  return graph.At(at).ends_path ? std::optional(nodes) : std::nullopt;
}

}  // namespace outrider::trace
