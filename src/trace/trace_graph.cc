#include "trace/trace_graph.h"

#include <algorithm>

#include "base/check.h"
#include "trace/match.h"
#include "trace/path_hash.h"

namespace outrider::trace {
namespace {

// How many nodes of one signature a join looks at. Programs repeat operators thousands of times; the nearest levels are
// the likely ones.
constexpr size_t kJoinCandidatesMax = 64;

std::vector<Edge>::iterator FindEdge(Node& from, NodeId to) {
  return std::find_if(from.successors.begin(), from.successors.end(), [to](const Edge& edge) { return edge.to == to; });
}

bool HasEdge(const Node& from, NodeId to) {
  return std::any_of(from.successors.begin(), from.successors.end(), [to](const Edge& edge) { return edge.to == to; });
}

}  // namespace

TraceGraph::TraceGraph(Limits limits) : nodes_(1), live_nodes_(1), limits_(limits) {
  OUTRIDER_CHECK(limits.nodes_max > 0 && limits.paths_max > 0, "limits must be positive");
}

TraceGraph TraceGraph::FromNodes(std::vector<Node> nodes, Limits limits) {
  OUTRIDER_CHECK(!nodes.empty(), "a graph has at least START");
  TraceGraph graph(limits);
  graph.nodes_ = std::move(nodes);
  graph.live_nodes_ = 0;
  for (uint32_t i = 0; i < graph.nodes_.size(); ++i) {
    if (!graph.nodes_[i].alive) continue;
    ++graph.live_nodes_;
    graph.clock_ = std::max(graph.clock_, graph.nodes_[i].last_visit + 1);
    if (NodeId{i} != kStart) graph.IndexBySignature(NodeId{i});
  }
  return graph;
}

void TraceGraph::IndexBySignature(NodeId id) {
  std::vector<NodeId>& known = by_signature_[At(id).signature];
  const auto behind = std::upper_bound(known.begin(), known.end(), At(id).level,
                                       [this](uint32_t level, NodeId other) { return level < At(other).level; });
  known.insert(behind, id);
}

bool TraceGraph::Accepts(NodeId node, std::span<const Input> inputs) const { return InputsAccepted(At(node), inputs); }

void TraceGraph::Follow(NodeId from, NodeId to) {
  OUTRIDER_DCHECK(HasEdge(At(from), to), "no edge ", from.value, " -> ", to.value);
  Cross(from, to);
}

bool TraceGraph::OnOpenPath(NodeId node) const { return path_open_ && At(node).last_visit == clock_; }

void TraceGraph::OpenPath() {
  if (path_open_) ++clock_;  // the marks of the dropped path must not count for this one
  path_open_ = true;
  open_path_hash_ = kEmptyPathHash;
  Node& start = Mutable(kStart);
  ++start.visits;
  start.last_visit = clock_;
}

void TraceGraph::Cross(NodeId from, NodeId to) {
  if (from == kStart) OpenPath();
  std::vector<Edge>& edges = Mutable(from).successors;
  const auto edge = FindEdge(Mutable(from), to);
  ++edge->taken;
  std::rotate(edges.begin(), edge, edge + 1);

  Node& node = Mutable(to);
  ++node.visits;
  node.last_visit = clock_;
  open_path_hash_ = MixHash(open_path_hash_, to.value);
}

std::optional<NodeId> TraceGraph::FindJoin(NodeId from, SignatureId signature, std::span<const Input> inputs) const {
  return FindJoin(from, Call{signature, inputs}, [](NodeId) { return true; });
}

std::optional<NodeId> TraceGraph::FindJoin(NodeId from, Call call, const JoinFilter& also) const {
  for (const Edge& edge : Successors(from)) {
    if (At(edge.to).signature == call.signature && MayJoin(from, edge.to, call) && also(edge.to)) return edge.to;
  }
  const auto found = by_signature_.find(call.signature);
  if (found == by_signature_.end()) return std::nullopt;

  const std::vector<NodeId>& known = found->second;
  const auto higher = std::upper_bound(known.begin(), known.end(), At(from).level,
                                       [this](uint32_t level, NodeId node) { return level < At(node).level; });
  const size_t looked_at = std::min<size_t>(known.end() - higher, kJoinCandidatesMax);
  for (auto node = higher; node != higher + looked_at; ++node) {
    if (MayJoin(from, *node, call) && also(*node)) return *node;
  }
  return std::nullopt;
}

bool TraceGraph::MayJoin(NodeId from, NodeId to, Call call) const {
  const Node& node = At(to);
  if (!InputsFit(node, call.inputs)) return false;
  for (size_t i = 0; i < call.inputs.size(); ++i) {
    for (const Input& producer : node.inputs[i].producers) {
      const bool other = call.inputs[i].origin == Origin::kValue && producer != call.inputs[i];
      if (other && OnOpenPath(producer.producer)) return false;
    }
  }
  if (!HasEdge(At(from), to) && !StaysDistinct(to, from, call)) return false;
  return std::all_of(node.predecessors.begin(), node.predecessors.end(),
                     [&](NodeId parent) { return StaysDistinct(to, parent, call); });
}

// With the inputs of `call` added, `to` still overlaps with no other successor of `parent`.
bool TraceGraph::StaysDistinct(NodeId to, NodeId parent, Call call) const {
  const std::span<const Edge> siblings = Successors(parent);
  return std::none_of(siblings.begin(), siblings.end(),
                      [&](const Edge& edge) { return edge.to != to && Overlap(At(to), At(edge.to), call.inputs); });
}

void TraceGraph::Join(NodeId from, NodeId to, std::span<const Input> inputs) {
  Node& node = Mutable(to);
  OUTRIDER_CHECK(node.level > At(from).level, "a join must go up: level ", At(from).level, " to ", node.level);
  OUTRIDER_CHECK(InputsFit(node, inputs), "node ", to.value, " cannot stand for this call");
  for (size_t i = 0; i < inputs.size(); ++i) {
    std::vector<Input>& producers = node.inputs[i].producers;
    if (std::find(producers.begin(), producers.end(), inputs[i]) == producers.end()) producers.push_back(inputs[i]);
  }
  if (!HasEdge(At(from), to)) {
    Mutable(from).successors.push_back({to});
    node.predecessors.push_back(from);
  }
  Cross(from, to);
}

NodeId TraceGraph::Branch(NodeId from, SignatureId signature, std::span<const Input> inputs, uint16_t outputs) {
  OUTRIDER_DCHECK(!FindAccepting(from, {signature, inputs}), "a successor of ", from.value, " accepts this call");
  const NodeId to{static_cast<uint32_t>(nodes_.size())};
  Node& node = nodes_.emplace_back();
  node.signature = signature;
  node.level = At(from).level + 1;
  node.outputs = outputs;
  node.predecessors.push_back(from);
  for (const Input& input : inputs) node.inputs.push_back(Slot{{input}});
  ++live_nodes_;

  IndexBySignature(to);
  Mutable(from).successors.push_back({to});
  Cross(from, to);
  return to;
}

void TraceGraph::MarkFetched(NodeId node) { Mutable(node).fetched = true; }

void TraceGraph::EndPath(NodeId last) {
  if (last == kStart) OpenPath();
  OUTRIDER_CHECK(path_open_, "no path is open");
  Mutable(last).ends_path = true;
  paths_[open_path_hash_] = clock_;
  if (paths_.size() > size_t{limits_.paths_max} + 1) {
    paths_.erase(std::min_element(paths_.begin(), paths_.end(),
                                  [](const auto& a, const auto& b) { return a.second < b.second; }));
  }
  path_open_ = false;
  ++clock_;
}

size_t TraceGraph::PathCount() const { return paths_.size(); }

}  // namespace outrider::trace
