#include "trace/mermaid.h"

namespace outrider::trace {
namespace {

std::string BoxName(uint32_t box) {
  if (box == Drawing::kStartBox) return "first((START))";
  if (box == Drawing::kEndBox) return "last((END))";
  return "b" + std::to_string(box);
}

// Mermaid reads HTML entities inside quoted labels.
std::string Escaped(const std::string& line) {
  std::string text;
  for (const char c : line) {
    switch (c) {
      case '"':
        text += "&quot;";
        break;
      case '&':
        text += "&amp;";
        break;
      case '<':
        text += "&lt;";
        break;
      case '>':
        text += "&gt;";
        break;
      case '\n':
        text += ' ';
        break;
      default:
        text += c;
    }
  }
  return text;
}

std::string Shape(const Box& box) {
  std::string label;
  for (const std::string& line : box.lines) label += (label.empty() ? "" : "<br/>") + Escaped(line);
  return box.fetches ? "[[\"" + label + "\"]]" : "[\"" + label + "\"]";
}

}  // namespace

std::string ToMermaid(const TraceGraph& graph, const NameOf& name_of, DrawingOptions options) {
  const Drawing drawing = Draw(graph, name_of, options);
  std::string text = "flowchart TD\n";
  for (uint32_t i = 0; i < drawing.boxes.size(); ++i) {
    text += "  " + BoxName(i) + Shape(drawing.boxes[i]) + "\n";
  }
  for (const Arrow& arrow : drawing.arrows) {
    text += "  " + BoxName(arrow.from) + " -->";
    text += (arrow.label.empty() ? " " : "|" + arrow.label + "| ") + BoxName(arrow.to) + "\n";
  }
  return text;
}

}  // namespace outrider::trace
