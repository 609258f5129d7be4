#pragma once
// A TraceGraph for Mermaid, which Markdown pages show as a picture.

#include <string>

#include "trace/drawing.h"

namespace outrider::trace {

// A complete `flowchart`; boxes with a fetch have a doubled side border.
std::string ToMermaid(const TraceGraph& graph, const NameOf& name_of, DrawingOptions options = {});

}  // namespace outrider::trace
