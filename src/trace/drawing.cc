#include "trace/drawing.h"

#include <algorithm>

#include "trace/chains.h"

namespace outrider::trace {
namespace {

struct Marks {
  size_t feeds = 0;
  size_t phis = 0;
  size_t fetches = 0;
};

Marks MarksOf(const Node& node) {
  Marks marks;
  marks.fetches = node.fetched;
  for (const Slot& slot : node.inputs) {
    marks.phis += slot.IsPhi();
    marks.feeds += slot.producers.front().origin == Origin::kFeed;
  }
  return marks;
}

std::string Join(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

std::string OpLine(const Node& node, const NameOf& name_of) {
  const Marks marks = MarksOf(node);
  std::vector<std::string> parts;
  if (marks.feeds > 0) parts.push_back("feeds " + std::to_string(marks.feeds));
  if (marks.phis > 0) parts.push_back("phi " + std::to_string(marks.phis));
  std::string line = name_of(node.signature);
  if (!parts.empty()) line += " (" + Join(parts) + ")";
  if (marks.fetches > 0) line += " => fetched";
  return line;
}

std::string FoldedLine(const TraceGraph& graph, std::span<const NodeId> nodes) {
  Marks sum;
  for (const NodeId node : nodes) {
    const Marks marks = MarksOf(graph.At(node));
    sum.feeds += marks.feeds;
    sum.phis += marks.phis;
    sum.fetches += marks.fetches;
  }
  std::vector<std::string> parts{std::to_string(nodes.size()) + " ops"};
  if (sum.feeds > 0) parts.push_back("feeds " + std::to_string(sum.feeds));
  if (sum.phis > 0) parts.push_back("phi " + std::to_string(sum.phis));
  if (sum.fetches > 0) parts.push_back("fetched " + std::to_string(sum.fetches));
  return "... " + Join(parts) + " ...";
}

Box BoxOf(const TraceGraph& graph, const std::vector<NodeId>& chain, const NameOf& name_of, uint32_t ops_max) {
  Box box;
  box.fetches = std::any_of(chain.begin(), chain.end(), [&](NodeId node) { return graph.At(node).fetched; });
  if (chain.size() <= std::max<uint32_t>(ops_max, 2)) {
    for (const NodeId node : chain) box.lines.push_back(OpLine(graph.At(node), name_of));
    return box;
  }
  box.lines.push_back(OpLine(graph.At(chain.front()), name_of));
  box.lines.push_back(FoldedLine(graph, std::span(chain).subspan(1, chain.size() - 2)));
  box.lines.push_back(OpLine(graph.At(chain.back()), name_of));
  return box;
}

void DrawArrows(const TraceGraph& graph, const Chains& chains, uint32_t from, NodeId last, std::vector<Arrow>& arrows) {
  std::vector<Edge> edges = graph.At(last).successors;
  std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.to < b.to; });
  for (const Edge& edge : edges) {
    arrows.push_back({from, chains.of_node[edge.to.value], std::to_string(edge.taken) + "x"});
  }
  if (graph.At(last).ends_path) arrows.push_back({from, Drawing::kEndBox, ""});
}

}  // namespace

Drawing Draw(const TraceGraph& graph, const NameOf& name_of, DrawingOptions options) {
  const Chains chains = FindChains(graph);
  Drawing drawing;
  DrawArrows(graph, chains, Drawing::kStartBox, TraceGraph::kStart, drawing.arrows);
  for (uint32_t i = 0; i < chains.nodes.size(); ++i) {
    drawing.boxes.push_back(BoxOf(graph, chains.nodes[i], name_of, options.ops_max));
    DrawArrows(graph, chains, i, chains.nodes[i].back(), drawing.arrows);
  }
  return drawing;
}

}  // namespace outrider::trace
