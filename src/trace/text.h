#pragma once
// The text form of graphs and traces: for bug reports, golden tests and fuzzing. Printing a parsed text gives the text
// back, apart from comments and spaces.
//
// A graph has one line per live node, in the order of ids. `a|b` are the candidates of a phi; `name#7` is signature 7.
//
//   graph nodes_max 200000 paths_max 256
//   start visits 2 last 2 to %1:2
//   %1 = aten::mm#0(p0, feed) outputs 1 level 1 visits 2 last 2 to %2:1, %3:1
//   %2 = aten::relu#1(%1.0) outputs 1 level 2 visits 1 last 1 to %4:1
//   %3 = aten::neg#2(%1.0) outputs 1 level 2 visits 1 last 2 to %4:1
//   %4 = aten::sum#3(%2.0|%3.0) outputs 1 level 3 visits 2 last 2 fetched end
//
// A list of traces has one line per op; `%0` is the first op of its trace.
//
//   trace
//   %0 = aten::mm#0(p0, feed) outputs 1
//   %1 = aten::relu#1(%0.0) outputs 1 fetched
//
// Inputs: `%1.0` output 0 of %1, `p3` persistent 3, `feed`, `none`. Names that are not plain are quoted. `//` starts a
// comment.

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "trace/names.h"
#include "trace/trace_graph.h"

namespace outrider::trace {

struct ParsedGraph {
  TraceGraph graph;
  NameTable names;
};

struct ParsedTraces {
  std::vector<Trace> traces;
  NameTable names;
};

std::string PrintGraph(const TraceGraph& graph, const NameOf& name_of);
std::string PrintTraces(const std::vector<Trace>& traces, const NameOf& name_of);

// Error code "PARSE", with line and reason. A parsed graph fulfils trace/validate.h; a parsed trace can be merged.
base::Result<ParsedGraph> ParseGraph(std::string_view text);
base::Result<ParsedTraces> ParseTraces(std::string_view text);

}  // namespace outrider::trace
