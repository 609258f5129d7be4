#pragma once
// Checks the invariants of a TraceGraph and returns every violation. For tests and for graphs read from text; the time
// grows with nodes times edges in the worst case.

#include <span>
#include <string>
#include <vector>

#include "trace/trace_graph.h"

namespace outrider::trace {

enum class Rule {
  kStart,       // node 0 is alive, on level 0, and has no inputs
  kEdgeTarget,  // an edge leads to a live node other than START, and at most one edge leads there from each node
  kEdgeUp,      // an edge goes to a higher level
  kMirrored,    // predecessors mirror the edges
  kDistinct,    // two successors of a node never accept the same call
  kSlot,        // a slot has producers, none twice, and kValue is not mixed with other origins
  kProducer,    // a kValue producer is a live node on a lower level and has that output
  kAvailable,   // at least one kValue producer of each slot lies on a path to the node
  kReachable,   // each live node can be reached from START
  kEnds,        // each live node leads to the end of a path
};

struct Violation {
  Rule rule;
  NodeId node;
  std::string text;
};

std::vector<Violation> Validate(std::span<const Node> nodes);
inline std::vector<Violation> Validate(const TraceGraph& graph) { return Validate(graph.Nodes()); }

// One line per violation, for messages.
std::string Describe(std::span<const Violation> violations);

}  // namespace outrider::trace
