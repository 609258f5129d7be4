// Eviction. A walk stamps every node it crosses with its clock, so all nodes of a path carry its stamp or a later one.
// Removing everything up to a stamp therefore takes whole paths away and leaves every later path whole.

#include <algorithm>

#include "trace/trace_graph.h"

namespace outrider::trace {
namespace {

// The largest stamp to remove such that at most `keep` of `stamps` remain; 0, which no path has, if all may stay.
uint64_t StampToRemove(std::vector<uint64_t> stamps, size_t keep) {
  if (stamps.size() <= keep) return 0;
  const auto last_removed = stamps.begin() + static_cast<std::ptrdiff_t>(stamps.size() - keep - 1);
  std::nth_element(stamps.begin(), last_removed, stamps.end());
  return *last_removed;
}

}  // namespace

std::vector<NodeId> TraceGraph::Evict() {
  if (path_open_) {
    path_open_ = false;
    ++clock_;
  }
  if (live_nodes_ <= limits_.nodes_max && paths_.size() <= limits_.paths_max) return {};
  std::vector<uint64_t> node_stamps;
  std::vector<uint64_t> path_stamps;
  for (size_t i = 1; i < nodes_.size(); ++i) {
    if (nodes_[i].alive) node_stamps.push_back(nodes_[i].last_visit);
  }
  for (const auto& [hash, stamp] : paths_) path_stamps.push_back(stamp);
  const uint64_t remove_upto = std::max(StampToRemove(std::move(node_stamps), limits_.nodes_max - 1),
                                        StampToRemove(std::move(path_stamps), limits_.paths_max));
  std::vector<NodeId> alive_before;
  for (size_t i = 1; i < nodes_.size(); ++i) {
    if (nodes_[i].alive) alive_before.emplace_back(static_cast<uint32_t>(i));
  }
  RemoveUntakenSince(remove_upto);
  RemoveBrokenNodes();
  std::erase_if(alive_before, [this](NodeId node) { return At(node).alive; });
  return alive_before;
}

void TraceGraph::RemoveUntakenSince(uint64_t clock) {
  std::erase_if(paths_, [clock](const auto& path) { return path.second <= clock; });
  for (size_t i = 1; i < nodes_.size(); ++i) {
    if (nodes_[i].alive && nodes_[i].last_visit <= clock) Remove(NodeId{static_cast<uint32_t>(i)});
  }
}

// Walks that were dropped leave nodes that lead nowhere once the path around them is gone. Each round removes what is
// not between START and an end, and what lost all producers of an input.
void TraceGraph::RemoveBrokenNodes() {
  bool removed = true;
  while (removed) {
    removed = false;
    const std::vector<bool> keep = NodesOnWholePaths();
    for (uint32_t i = 1; i < nodes_.size(); ++i) {
      if (!nodes_[i].alive) continue;
      if (keep[i] && !DropDeadProducers(NodeId{i})) continue;
      Remove(NodeId{i});
      removed = true;
    }
  }
}

std::vector<bool> TraceGraph::NodesOnWholePaths() const {
  std::vector<uint32_t> upward;  // live nodes in the order of their levels, which is a topological order
  for (uint32_t i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i].alive) upward.push_back(i);
  }
  std::sort(upward.begin(), upward.end(), [this](uint32_t a, uint32_t b) { return nodes_[a].level < nodes_[b].level; });

  std::vector<bool> from_start(nodes_.size());
  from_start[kStart.value] = true;
  for (const uint32_t i : upward) {
    if (!from_start[i]) continue;
    for (const Edge& edge : nodes_[i].successors) from_start[edge.to.value] = true;
  }
  std::vector<bool> to_end(nodes_.size());
  for (auto i = upward.rbegin(); i != upward.rend(); ++i) {
    const std::vector<Edge>& edges = nodes_[*i].successors;
    to_end[*i] = nodes_[*i].ends_path ||
                 std::any_of(edges.begin(), edges.end(), [&](const Edge& edge) { return to_end[edge.to.value]; });
  }
  for (size_t i = 0; i < nodes_.size(); ++i) from_start[i] = from_start[i] && to_end[i];
  return from_start;
}

// True when an input of the node has no producer left.
bool TraceGraph::DropDeadProducers(NodeId node) {
  bool starved = false;
  for (Slot& slot : Mutable(node).inputs) {
    std::erase_if(slot.producers,
                  [this](const Input& input) { return input.origin == Origin::kValue && !At(input.producer).alive; });
    starved = starved || slot.producers.empty();
  }
  return starved;
}

void TraceGraph::Remove(NodeId id) {
  Node& node = Mutable(id);
  for (const NodeId parent : node.predecessors) {
    std::erase_if(Mutable(parent).successors, [id](const Edge& edge) { return edge.to == id; });
  }
  for (const Edge& edge : node.successors) std::erase(Mutable(edge.to).predecessors, id);
  const auto known = by_signature_.find(node.signature);
  std::erase(known->second, id);
  if (known->second.empty()) by_signature_.erase(known);
  node = Node{};
  node.alive = false;
  --live_nodes_;
}

}  // namespace outrider::trace
