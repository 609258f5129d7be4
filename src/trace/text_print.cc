#include <algorithm>
#include <cctype>

#include "trace/text.h"

namespace outrider::trace {
namespace {

using std::to_string;

bool IsPlain(const std::string& name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == ':' || c == '.';
  });
}

std::string Quoted(const std::string& name) {
  if (IsPlain(name)) return name;
  std::string quoted = "\"";
  for (const char c : name) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (c == '\n') {
      quoted += "\\n";
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string Print(const Input& input) {
  switch (input.origin) {
    case Origin::kValue:
      return "%" + to_string(input.producer.value) + "." + to_string(input.index);
    case Origin::kPersistent:
      return "p" + to_string(input.index);
    case Origin::kFeed:
      return "feed";
    case Origin::kNone:
      return "none";
  }
  return "";
}

std::string Print(const Slot& slot) {
  std::string text;
  for (const Input& input : slot.producers) text += (text.empty() ? "" : "|") + Print(input);
  return text;
}

template <class Part>
std::string PrintCall(SignatureId signature, const std::vector<Part>& inputs, const NameOf& name_of) {
  std::string list;
  for (const Part& input : inputs) list += (list.empty() ? "" : ", ") + Print(input);
  return Quoted(name_of(signature)) + "#" + to_string(signature.value) + "(" + list + ")";
}

std::string PrintTail(const Node& node) {
  std::string text = " visits " + to_string(node.visits) + " last " + to_string(node.last_visit);
  if (node.fetched) text += " fetched";
  if (node.ends_path) text += " end";
  const char* before_edge = " to %";
  for (const Edge& edge : node.successors) {
    text += before_edge + to_string(edge.to.value) + ":" + to_string(edge.taken);
    before_edge = ", %";
  }
  return text + '\n';
}

}  // namespace

std::string PrintGraph(const TraceGraph& graph, const NameOf& name_of) {
  const Limits limits = graph.GraphLimits();
  std::string text =
      "graph nodes_max " + to_string(limits.nodes_max) + " paths_max " + to_string(limits.paths_max) + '\n';
  text += "start" + PrintTail(graph.At(TraceGraph::kStart));
  for (uint32_t i = 1; i < graph.Nodes().size(); ++i) {
    const Node& node = graph.Nodes()[i];
    if (!node.alive) continue;
    text += "%" + to_string(i) + " = " + PrintCall(node.signature, node.inputs, name_of);
    text += " outputs " + to_string(node.outputs) + " level " + to_string(node.level) + PrintTail(node);
  }
  return text;
}

std::string PrintTraces(const std::vector<Trace>& traces, const NameOf& name_of) {
  std::string text;
  for (const Trace& trace : traces) {
    text += "trace\n";
    for (size_t i = 0; i < trace.size(); ++i) {
      text += "%" + to_string(i) + " = " + PrintCall(trace[i].signature, trace[i].inputs, name_of);
      text += " outputs " + to_string(trace[i].outputs) + (trace[i].fetched ? " fetched\n" : "\n");
    }
  }
  return text;
}

}  // namespace outrider::trace
