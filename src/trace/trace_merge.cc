// Merging whole traces: follow where the graph knows the op, join a known stretch where the next ops match too, else
// branch.

#include <algorithm>

#include "base/check.h"
#include "trace/match.h"
#include "trace/path_hash.h"
#include "trace/trace_graph.h"

namespace outrider::trace {
namespace {

// A trace reads only what it produced before. Checked as a whole, so that a bad trace leaves the graph as it was.
void CheckTrace(const Trace& trace) {
  for (size_t i = 0; i < trace.size(); ++i) {
    for (const Input& input : trace[i].inputs) {
      if (input.origin != Origin::kValue) continue;
      const uint32_t op = input.producer.value;
      OUTRIDER_CHECK(op < i, "op ", i, " reads op ", op, ", which is not before it");
      OUTRIDER_CHECK(input.index < trace[op].outputs, "op ", i, " reads output ", input.index, " of op ", op);
    }
  }
}

// Inputs of an op with op numbers replaced by the nodes those ops became.
std::vector<Input> RenameInputs(const OpRecord& op, const std::vector<NodeId>& nodes) {
  std::vector<Input> inputs = op.inputs;
  for (Input& input : inputs) {
    if (input.origin == Origin::kValue) input.producer = nodes[input.producer.value];
  }
  return inputs;
}

// Whether some walk from `node` matches the `count` ops of `trace` from `position` on. Where values come from is left
// out: it is only settled by the walk itself.
bool MatchesAhead(const TraceGraph& graph, NodeId node, const Trace& trace, size_t position, uint32_t count) {
  if (count == 0 || position == trace.size()) return true;
  for (const Edge& edge : graph.Successors(node)) {
    const Node& next = graph.At(edge.to);
    if (next.signature == trace[position].signature && InputsFit(next, trace[position].inputs) &&
        MatchesAhead(graph, edge.to, trace, position + 1, count - 1)) {
      return true;
    }
  }
  return false;
}

}  // namespace

std::optional<NodeId> TraceGraph::FindAccepting(NodeId from, Call call) const {
  for (const Edge& edge : Successors(from)) {
    const Node& next = At(edge.to);
    if (next.signature == call.signature && InputsAccepted(next, call.inputs)) return edge.to;
  }
  return std::nullopt;
}

NodeId TraceGraph::Step(NodeId from, Call call, uint16_t outputs, const JoinFilter& also, MergeResult& result) {
  if (const auto next = FindAccepting(from, call)) {
    Follow(from, *next);
    return *next;
  }
  if (const auto next = FindJoin(from, call, also)) {
    Join(from, *next, call.inputs);
    ++result.joins;
    return *next;
  }
  ++result.new_nodes;
  return Branch(from, call.signature, call.inputs, outputs);
}

MergeResult TraceGraph::Merge(const Trace& trace, uint32_t lookahead) {
  CheckTrace(trace);
  MergeResult result;
  result.path = kEmptyPathHash;
  result.wiring = kEmptyPathHash;
  result.nodes.reserve(trace.size());
  NodeId at = kStart;
  for (size_t i = 0; i < trace.size(); ++i) {
    const std::vector<Input> inputs = RenameInputs(trace[i], result.nodes);
    const auto matches_ahead = [&](NodeId node) { return MatchesAhead(*this, node, trace, i + 1, lookahead); };
    at = Step(at, {trace[i].signature, inputs}, trace[i].outputs, matches_ahead, result);

    Node& node = Mutable(at);
    node.outputs = std::max(node.outputs, trace[i].outputs);
    if (trace[i].fetched) node.fetched = true;
    result.nodes.push_back(at);
    result.path = MixHash(result.path, at.value);
    result.wiring = MixWiring(result.wiring, at, inputs);
  }
  result.covered = result.new_nodes == 0 && result.joins == 0 && At(at).ends_path;
  EndPath(at);
  return result;
}

}  // namespace outrider::trace
