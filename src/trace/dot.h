#pragma once
// A TraceGraph for Graphviz.

#include <string>

#include "trace/drawing.h"

namespace outrider::trace {

// A complete `digraph`; boxes with a fetch have a double border.
std::string ToDot(const TraceGraph& graph, const NameOf& name_of, DrawingOptions options = {});

}  // namespace outrider::trace
