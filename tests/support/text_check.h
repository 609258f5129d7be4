#pragma once
// What must hold for any bytes given to the text parser; used by the fuzzer and by a test with a fixed seed.

#include <stdexcept>
#include <string>
#include <string_view>

#include "trace/dot.h"
#include "trace/mermaid.h"
#include "trace/text.h"
#include "trace/validate.h"

namespace outrider::trace {

inline void Require(bool condition, const char* what) {
  if (!condition) throw std::logic_error(what);
}

inline void CheckGraphText(std::string_view bytes) {
  const auto parsed = ParseGraph(bytes);
  if (!parsed) {
    Require(parsed.error().code == "PARSE" && !parsed.error().message.empty(), "a refusal needs a reason");
    return;
  }
  const NameOf name_of = NamesFrom(parsed->names);
  Require(Validate(parsed->graph).empty(), "a parsed graph must be valid");
  const std::string text = PrintGraph(parsed->graph, name_of);
  const auto again = ParseGraph(text);
  Require(again.has_value(), "a printed graph must parse");
  Require(PrintGraph(again->graph, NamesFrom(again->names)) == text, "a graph must survive the text form");
  Require(!ToDot(parsed->graph, name_of).empty() && !ToMermaid(parsed->graph, name_of).empty(), "a graph has drawings");
}

inline void CheckTracesText(std::string_view bytes) {
  const auto parsed = ParseTraces(bytes);
  if (!parsed) {
    Require(parsed.error().code == "PARSE" && !parsed.error().message.empty(), "a refusal needs a reason");
    return;
  }
  const std::string text = PrintTraces(parsed->traces, NamesFrom(parsed->names));
  const auto again = ParseTraces(text);
  Require(again.has_value(), "printed traces must parse");
  Require(PrintTraces(again->traces, NamesFrom(again->names)) == text, "traces must survive the text form");
  TraceGraph graph({.nodes_max = 64, .paths_max = 8});
  for (const Trace& trace : parsed->traces) {
    graph.Merge(trace);
    graph.Evict();
  }
  Require(Validate(graph).empty(), "merged traces must make a valid graph");
}

}  // namespace outrider::trace
