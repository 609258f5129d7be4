#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include "support/random_traces.h"
#include "support/replay.h"
#include "trace/trace_graph.h"
#include "trace/validate.h"

namespace outrider::trace {
namespace {

RC_GTEST_PROP(EvictProperty, KeepsTheLimitsAndEveryRemainingPath, ()) {
  const Limits limits{1 + Below(24), 1 + Below(4)};
  const std::vector<Trace> traces = AnyTraces(16);
  TraceGraph graph(limits);
  std::vector<std::vector<NodeId>> merged;
  for (const Trace& trace : traces) {
    merged.push_back(graph.Merge(trace).nodes);
    const size_t before = graph.NodeCount();
    const std::vector<NodeId> removed = graph.Evict();

    RC_ASSERT(graph.NodeCount() == before - removed.size());
    RC_ASSERT(graph.NodeCount() <= limits.nodes_max);
    RC_ASSERT(graph.PathCount() <= limits.paths_max);
    RC_ASSERT(Describe(Validate(graph)) == "");
    for (const NodeId node : removed) RC_ASSERT(!graph.At(node).alive);
    for (size_t i = 0; i < merged.size(); ++i) {
      const bool whole = std::all_of(merged[i].begin(), merged[i].end(), [&](NodeId n) { return graph.At(n).alive; });
      if (whole) RC_ASSERT(Replay(graph, traces[i]) == merged[i]);
    }
    if (trace.size() < limits.nodes_max) RC_ASSERT(Replay(graph, trace) == merged.back());
  }
}

RC_GTEST_PROP(EvictProperty, DroppedWalksLeaveNothingBehind, ()) {
  TraceGraph graph({.nodes_max = 100, .paths_max = 2});
  for (const Trace& trace : AnyTraces()) {
    graph.Merge(trace);
    // A walk that stops after one new op.
    graph.Branch(TraceGraph::kStart, SignatureId{1'000 + static_cast<uint32_t>(graph.Nodes().size())}, {}, 1);
    graph.Evict();
  }
  for (uint32_t signature = 0; signature < 3; ++signature) graph.Merge({OpRecord{SignatureId{500 + signature}, {}, 1}});
  graph.Evict();
  RC_ASSERT(Describe(Validate(graph)) == "");
}

}  // namespace
}  // namespace outrider::trace
