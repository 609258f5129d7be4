#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include "support/random_traces.h"
#include "support/replay.h"
#include "trace/text.h"
#include "trace/trace_graph.h"
#include "trace/validate.h"

namespace outrider::trace {
namespace {

uint32_t AnyLookahead() { return Below(5); }

RC_GTEST_PROP(MergeProperty, EveryMergedTraceStaysThePathItBecame, ()) {
  const std::vector<Trace> traces = AnyTraces();
  const uint32_t lookahead = AnyLookahead();
  TraceGraph graph;
  std::vector<MergeResult> results;
  for (const Trace& trace : traces) {
    results.push_back(graph.Merge(trace, lookahead));
    RC_ASSERT(Describe(Validate(graph)) == "");
    for (size_t i = 0; i < results.size(); ++i) RC_ASSERT(Replay(graph, traces[i]) == results[i].nodes);
  }
}

RC_GTEST_PROP(MergeProperty, AKnownTraceIsCoveredAndAddsNothing, ()) {
  const std::vector<Trace> traces = AnyTraces();
  const uint32_t lookahead = AnyLookahead();
  TraceGraph graph;
  std::vector<MergeResult> first;
  for (const Trace& trace : traces) first.push_back(graph.Merge(trace, lookahead));
  const size_t nodes = graph.NodeCount();
  const size_t paths = graph.PathCount();
  for (size_t i = 0; i < traces.size(); ++i) {
    const MergeResult again = graph.Merge(traces[i], AnyLookahead());
    RC_ASSERT(again.covered);
    RC_ASSERT(again.nodes == first[i].nodes);
    RC_ASSERT(again.path == first[i].path);
    RC_ASSERT(again.wiring == first[i].wiring);
  }
  RC_ASSERT(graph.NodeCount() == nodes);
  RC_ASSERT(graph.PathCount() == paths);
}

RC_GTEST_PROP(MergeProperty, CoveredMeansTheGraphHadThePath, ()) {
  const std::vector<Trace> traces = AnyTraces();
  TraceGraph graph;
  for (const Trace& trace : traces) {
    const bool had_path = Replay(graph, trace).has_value();
    const size_t nodes = graph.NodeCount();
    const MergeResult result = graph.Merge(trace, AnyLookahead());
    RC_ASSERT(result.covered == had_path);
    RC_ASSERT(graph.NodeCount() == nodes + result.new_nodes);
  }
}

RC_GTEST_PROP(MergeProperty, WiringTellsTracesOnOnePathApart, ()) {
  const std::vector<Trace> traces = AnyTraces();
  TraceGraph graph;
  std::vector<MergeResult> results;
  for (const Trace& trace : traces) results.push_back(graph.Merge(trace));
  for (size_t i = 0; i < traces.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const auto same_call = [](const OpRecord& a, const OpRecord& b) {
        return a.signature == b.signature && a.inputs == b.inputs;
      };
      const bool same_trace =
          std::equal(traces[i].begin(), traces[i].end(), traces[j].begin(), traces[j].end(), same_call);
      RC_ASSERT((results[i].path == results[j].path) == (results[i].nodes == results[j].nodes));
      RC_ASSERT((results[i].wiring == results[j].wiring) == same_trace);
    }
  }
}

// The way of a cursor that grows the graph while the program runs, without looking ahead.
RC_GTEST_PROP(MergeProperty, GrowingStepByStepKeepsTheInvariants, ()) {
  const std::vector<Trace> traces = AnyTraces();
  TraceGraph graph;
  std::vector<std::vector<NodeId>> walked;
  for (const Trace& trace : traces) {
    std::vector<NodeId> nodes;
    NodeId at = TraceGraph::kStart;
    for (const OpRecord& op : trace) {
      const std::vector<Input> inputs = Renamed(op, nodes);
      const std::vector<NodeId> accepting = Accepting(graph, at, op.signature, inputs);
      NodeId next;
      if (!accepting.empty()) {
        next = accepting.front();
        graph.Follow(at, next);
      } else if (const auto join = graph.FindJoin(at, op.signature, inputs)) {
        next = *join;
        graph.Join(at, next, inputs);
      } else {
        next = graph.Branch(at, op.signature, inputs, kOutputsMax);
      }
      at = next;
      nodes.push_back(at);
    }
    graph.EndPath(at);
    walked.push_back(nodes);
    RC_ASSERT(Describe(Validate(graph)) == "");
    for (size_t i = 0; i < walked.size(); ++i) RC_ASSERT(Replay(graph, traces[i]) == walked[i]);
  }
}

RC_GTEST_PROP(TextProperty, GraphsSurviveTheTextForm, ()) {
  TraceGraph graph({.nodes_max = 12, .paths_max = 4});
  for (const Trace& trace : AnyTraces()) graph.Merge(trace);
  graph.Evict();
  const NameOf name_of = [](SignatureId id) { return "op \"" + std::to_string(id.value) + "\"\n"; };
  const std::string text = PrintGraph(graph, name_of);
  const auto parsed = ParseGraph(text);
  RC_ASSERT(parsed.has_value());
  RC_ASSERT(PrintGraph(parsed->graph, NamesFrom(parsed->names)) == text);
  RC_ASSERT(parsed->graph.NodeCount() == graph.NodeCount());
}

RC_GTEST_PROP(TextProperty, AParsedGraphGrowsLikeTheOriginal, ()) {
  const std::vector<Trace> traces = AnyTraces();
  TraceGraph graph;
  for (const Trace& trace : traces) graph.Merge(trace);
  auto parsed = ParseGraph(PrintGraph(graph, NamesFrom({})));
  RC_ASSERT(parsed.has_value());
  for (const Trace& trace : AnyTraces()) {
    RC_ASSERT(parsed->graph.Merge(trace).nodes == graph.Merge(trace).nodes);
  }
}

RC_GTEST_PROP(TextProperty, TracesSurviveTheTextForm, ()) {
  const std::vector<Trace> traces = AnyTraces();
  const std::string text = PrintTraces(traces, NamesFrom({}));
  const auto parsed = ParseTraces(text);
  RC_ASSERT(parsed.has_value());
  RC_ASSERT(parsed->traces.size() == traces.size());
  RC_ASSERT(PrintTraces(parsed->traces, NamesFrom({})) == text);
}

}  // namespace
}  // namespace outrider::trace
