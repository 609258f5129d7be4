#include "trace/dot.h"

namespace outrider::trace {
namespace {

std::string BoxName(uint32_t box) {
  if (box == Drawing::kStartBox) return "start";
  if (box == Drawing::kEndBox) return "end";
  return "b" + std::to_string(box);
}

std::string Escaped(const std::string& line) {
  std::string text;
  for (const char c : line) {
    if (c == '"' || c == '\\') text += '\\';
    text += c == '\n' ? ' ' : c;
  }
  return text;
}

}  // namespace

std::string ToDot(const TraceGraph& graph, const NameOf& name_of, DrawingOptions options) {
  const Drawing drawing = Draw(graph, name_of, options);
  std::string text =
      "digraph trace_graph {\n"
      "  node [shape=box, fontname=\"monospace\"];\n"
      "  start [shape=circle, label=\"START\"];\n"
      "  end [shape=circle, label=\"END\"];\n";
  for (uint32_t i = 0; i < drawing.boxes.size(); ++i) {
    std::string label;
    for (const std::string& line : drawing.boxes[i].lines) label += Escaped(line) + "\\l";
    text +=
        "  " + BoxName(i) + " [label=\"" + label + "\"" + (drawing.boxes[i].fetches ? ", peripheries=2" : "") + "];\n";
  }
  for (const Arrow& arrow : drawing.arrows) {
    text += "  " + BoxName(arrow.from) + " -> " + BoxName(arrow.to);
    text += arrow.label.empty() ? ";\n" : " [label=\"" + arrow.label + "\"];\n";
  }
  return text + "}\n";
}

}  // namespace outrider::trace
