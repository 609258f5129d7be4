#pragma once
// TraceGraph: the DAG that merges all recorded traces. Every trace is a START -> END path. Pure data structure: no
// threads, no tensors. One thread at a time.
//
// Invariants (checked by trace/validate.h):
//  - every edge goes to a higher level, so the graph is acyclic;
//  - two successors of a node never accept the same operator call, so a trace has exactly one place to go;
//  - growing never takes an accepted call back, so a merged trace stays a path until it is evicted.
//
// A path crosses START once: the first edge out of START opens a path, EndPath closes it, and opening a path drops one
// that was never closed.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "trace/op_record.h"

namespace outrider::trace {

// One input slot of a node: all producers that reach it over the known paths. More than one is a phi.
struct Slot {
  std::vector<Input> producers;
  bool IsPhi() const { return producers.size() > 1; }
};

struct Edge {
  NodeId to;
  uint64_t taken = 0;  // how often a path crossed it
};

struct Node {
  SignatureId signature;
  std::vector<Slot> inputs;
  std::vector<Edge> successors;      // most recently taken first
  std::vector<NodeId> predecessors;  // unordered
  uint32_t level = 0;  // longest known distance from START when created; every edge goes to a higher level
  uint16_t outputs = 0;
  bool fetched = false;
  bool ends_path = false;  // some path ends here
  bool alive = true;       // false after eviction
  uint64_t visits = 0;
  uint64_t last_visit = 0;  // path clock of the last visit, for eviction
};

struct Limits {
  uint32_t nodes_max = 200'000;
  uint32_t paths_max = 256;
};

struct MergeResult {
  bool covered = false;  // the trace already was a path
  uint64_t path = 0;     // stable hash of the node sequence
  uint64_t wiring = 0;   // stable hash of the node sequence and of the producer of each input: at a phi, one path
                         // may be wired in several ways, and what is planned for a path holds for one wiring
  uint32_t new_nodes = 0;
  uint32_t joins = 0;         // times an existing node got a new edge or a new producer
  std::vector<NodeId> nodes;  // the path itself
};

class TraceGraph {
 public:
  static constexpr NodeId kStart{0};

  explicit TraceGraph(Limits limits = {});
  // A graph made of nodes from elsewhere, by id, START first. Precondition: trace/validate.h finds nothing wrong. The
  // count of paths starts anew.
  static TraceGraph FromNodes(std::vector<Node> nodes, Limits limits = {});

  // --- walking, used by cursors on the hot path ---
  const Node& At(NodeId node) const { return nodes_[node.value]; }
  std::span<const Edge> Successors(NodeId node) const { return nodes_[node.value].successors; }
  // True when each input is among the known producers of its slot.
  bool Accepts(NodeId node, std::span<const Input> inputs) const;
  // Counts the crossing and moves the edge to the front. The edge must exist.
  void Follow(NodeId from, NodeId to);

  // --- growing ---
  // An existing node that can stand for this call behind `from`: same signature, and the inputs agree where they are
  // not kValue (a kValue input may have any producer; kPersistent and kFeed must be known producers of the slot). It
  // lies on a higher level than `from`. A successor of `from` is preferred, then the lowest level. Never returns a node
  // that already accepts the call as a successor (that is Follow), nor one where the new producer would meet another
  // candidate of the same slot on the current path, or make two successors of some node accept the same call.
  std::optional<NodeId> FindJoin(NodeId from, SignatureId signature, std::span<const Input> inputs) const;
  // Adds the edge from -> to and the producers as phi candidates, and crosses the edge. Precondition: `to` comes from
  // FindJoin for the same arguments.
  void Join(NodeId from, NodeId to, std::span<const Input> inputs);
  // Adds a new node behind `from` and crosses the edge. Precondition: no successor of `from` accepts the call.
  NodeId Branch(NodeId from, SignatureId signature, std::span<const Input> inputs, uint16_t outputs);
  void MarkFetched(NodeId node);
  // The path that ends at `last` is complete: marks END, counts the path, and advances the path clock.
  void EndPath(NodeId last);

  // Merges a whole recorded trace: follow, join when the next `lookahead` ops match as well, else branch. A path that
  // is being walked is dropped. Throws CheckError when an input names an op or output that the trace does not have
  // before.
  MergeResult Merge(const Trace& trace, uint32_t lookahead = 4);

  // Removes the least recently taken paths, and the nodes that only they used, until the limits hold; returns the
  // removed nodes. START stays. A removed id is never reused. Call it between paths: an open path is dropped.
  std::vector<NodeId> Evict();

  size_t NodeCount() const { return live_nodes_; }
  size_t PathCount()
      const;  // number of distinct node sequences seen by Merge and EndPath walks, bounded by paths_max + 1
  std::span<const Node> Nodes() const { return nodes_; }
  const Limits& GraphLimits() const { return limits_; }

 private:
  using JoinFilter = std::function<bool(NodeId)>;

  // One op of a trace with its inputs renamed to graph nodes.
  struct Call {
    SignatureId signature;
    std::span<const Input> inputs;
  };

  Node& Mutable(NodeId node) { return nodes_[node.value]; }
  void IndexBySignature(NodeId id);
  bool OnOpenPath(NodeId node) const;
  void Cross(NodeId from, NodeId to);
  void OpenPath();

  std::optional<NodeId> FindJoin(NodeId from, Call call, const JoinFilter& also) const;
  bool MayJoin(NodeId from, NodeId to, Call call) const;
  bool StaysDistinct(NodeId to, NodeId parent, Call call) const;

  std::optional<NodeId> FindAccepting(NodeId from, Call call) const;
  NodeId Step(NodeId from, Call call, uint16_t outputs, const JoinFilter& also, MergeResult& result);

  void RemoveUntakenSince(uint64_t clock);
  void RemoveBrokenNodes();
  std::vector<bool> NodesOnWholePaths() const;
  bool DropDeadProducers(NodeId node);
  void Remove(NodeId node);

  std::vector<Node> nodes_;
  size_t live_nodes_ = 0;
  Limits limits_;
  std::unordered_map<SignatureId, std::vector<NodeId>> by_signature_;  // live nodes, by level and then id

  uint64_t clock_ = 1;  // stamp of the open path, or of the next one
  bool path_open_ = false;
  uint64_t open_path_hash_ = 0;
  std::unordered_map<uint64_t, uint64_t> paths_;  // hash of a closed path -> clock of its last walk; bounded
};

}  // namespace outrider::trace
