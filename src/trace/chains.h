#pragma once
// Maximal linear chains of a TraceGraph: runs of nodes that are always taken together. Drawings show them as boxes, the
// plan room calls them basic blocks.

#include <cstdint>
#include <vector>

#include "trace/trace_graph.h"

namespace outrider::trace {

struct Chains {
  static constexpr uint32_t kNone = ~uint32_t{0};

  std::vector<std::vector<NodeId>> nodes;  // per chain, in path order; chains by level and then id of their first node
  std::vector<uint32_t> of_node;           // per node id: its chain; kNone for START and evicted nodes
};

// Each live node but START is in exactly one chain.
Chains FindChains(const TraceGraph& graph);

}  // namespace outrider::trace
