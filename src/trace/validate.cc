#include "trace/validate.h"

#include <algorithm>

#include "trace/match.h"

namespace outrider::trace {
namespace {

class Validator {
 public:
  explicit Validator(std::span<const Node> nodes) : nodes_(nodes) {}

  std::vector<Violation> Run() {
    CheckStart();
    ForEachLive([this](uint32_t node) { CheckEdges(node); });
    ForEachLive([this](uint32_t node) { CheckSlots(node); });
    // The rest walks along edges and producers, which must be sound for that.
    if (!found_.empty()) return std::move(found_);
    ForEachLive([this](uint32_t node) { CheckMirrored(node); });
    ForEachLive([this](uint32_t node) { CheckDistinct(node); });
    ForEachLive([this](uint32_t node) { CheckAvailable(node); });
    CheckReachable();
    CheckEnds();
    return std::move(found_);
  }

 private:
  template <class Visit>
  void ForEachLive(Visit visit) {
    for (uint32_t i = 0; i < nodes_.size(); ++i) {
      if (nodes_[i].alive) visit(i);
    }
  }

  void Report(Rule rule, uint32_t node, std::string text) {
    found_.push_back({rule, NodeId{node}, "node " + std::to_string(node) + ": " + std::move(text)});
  }

  bool IsLive(NodeId node) const { return node.value < nodes_.size() && nodes_[node.value].alive; }

  void CheckStart() {
    const bool sound =
        !nodes_.empty() && nodes_[0].alive && nodes_[0].level == 0 && nodes_[0].inputs.empty() && !nodes_[0].outputs;
    if (!sound) Report(Rule::kStart, 0, "is not a START node");
  }

  void CheckEdges(uint32_t from) {
    std::vector<NodeId> targets;
    for (const Edge& edge : nodes_[from].successors) {
      const std::string name = "edge to " + std::to_string(edge.to.value);
      if (!IsLive(edge.to) || edge.to == TraceGraph::kStart) {
        Report(Rule::kEdgeTarget, from, name + ", which is no live node");
      } else if (nodes_[edge.to.value].level <= nodes_[from].level) {
        Report(Rule::kEdgeUp, from, name + " does not go up");
      }
      if (std::find(targets.begin(), targets.end(), edge.to) != targets.end()) {
        Report(Rule::kEdgeTarget, from, name + " is there twice");
      }
      targets.push_back(edge.to);
    }
  }

  void CheckSlots(uint32_t node) {
    for (size_t slot = 0; slot < nodes_[node].inputs.size(); ++slot) {
      const std::vector<Input>& producers = nodes_[node].inputs[slot].producers;
      const std::string name = "input " + std::to_string(slot);
      const bool values_only = std::all_of(producers.begin(), producers.end(),
                                           [](const Input& input) { return input.origin == Origin::kValue; });
      if (producers.empty()) Report(Rule::kSlot, node, name + " has no producer");
      if (producers.size() > 1 && !values_only) Report(Rule::kSlot, node, name + " mixes origins");
      for (auto producer = producers.begin(); producer != producers.end(); ++producer) {
        if (std::find(producers.begin(), producer, *producer) != producer) {
          Report(Rule::kSlot, node, name + " has a producer twice");
        }
        if (producer->origin == Origin::kValue) CheckProducer(node, *producer, name);
      }
    }
  }

  void CheckProducer(uint32_t node, const Input& input, const std::string& name) {
    const std::string reads = name + " reads " + std::to_string(input.producer.value);
    if (!IsLive(input.producer)) {
      Report(Rule::kProducer, node, reads + ", which is no live node");
    } else if (nodes_[input.producer.value].level >= nodes_[node].level) {
      Report(Rule::kProducer, node, reads + ", which is not below it");
    } else if (input.index >= nodes_[input.producer.value].outputs) {
      Report(Rule::kProducer, node, reads + ", which has no output " + std::to_string(input.index));
    }
  }

  void CheckMirrored(uint32_t node) {
    std::vector<NodeId> expected;
    ForEachLive([&](uint32_t from) {
      for (const Edge& edge : nodes_[from].successors) {
        if (edge.to.value == node) expected.emplace_back(from);
      }
    });
    std::vector<NodeId> listed = nodes_[node].predecessors;
    std::sort(listed.begin(), listed.end());
    if (listed != expected) Report(Rule::kMirrored, node, "predecessors differ from the edges");
  }

  void CheckDistinct(uint32_t node) {
    const std::vector<Edge>& edges = nodes_[node].successors;
    for (size_t i = 0; i < edges.size(); ++i) {
      for (size_t j = i + 1; j < edges.size(); ++j) {
        if (!Overlap(nodes_[edges[i].to.value], nodes_[edges[j].to.value])) continue;
        Report(Rule::kDistinct, node,
               "successors " + std::to_string(edges[i].to.value) + " and " + std::to_string(edges[j].to.value) +
                   " accept the same call");
      }
    }
  }

  std::vector<bool> AncestorsOf(uint32_t node) const {
    std::vector<bool> seen(nodes_.size());
    std::vector<uint32_t> open{node};
    while (!open.empty()) {
      const uint32_t at = open.back();
      open.pop_back();
      for (const NodeId before : nodes_[at].predecessors) {
        if (!IsLive(before) || seen[before.value]) continue;
        seen[before.value] = true;
        open.push_back(before.value);
      }
    }
    return seen;
  }

  void CheckAvailable(uint32_t node) {
    const std::vector<bool> before = AncestorsOf(node);
    for (size_t slot = 0; slot < nodes_[node].inputs.size(); ++slot) {
      const std::vector<Input>& producers = nodes_[node].inputs[slot].producers;
      const bool available = std::any_of(producers.begin(), producers.end(), [&](const Input& input) {
        return input.origin != Origin::kValue || before[input.producer.value];
      });
      if (!available) Report(Rule::kAvailable, node, "input " + std::to_string(slot) + " is on no path to it");
    }
  }

  void CheckReachable() {
    std::vector<bool> reached(nodes_.size());
    std::vector<uint32_t> open{TraceGraph::kStart.value};
    reached[TraceGraph::kStart.value] = true;
    while (!open.empty()) {
      const uint32_t at = open.back();
      open.pop_back();
      for (const Edge& edge : nodes_[at].successors) {
        if (reached[edge.to.value]) continue;
        reached[edge.to.value] = true;
        open.push_back(edge.to.value);
      }
    }
    ForEachLive([&](uint32_t node) {
      if (!reached[node]) Report(Rule::kReachable, node, "cannot be reached from START");
    });
  }

  // Edges go up, so a node without successors has to end a path, and every other node then leads to one that does.
  // START may stand alone in an empty graph.
  void CheckEnds() {
    ForEachLive([this](uint32_t node) {
      const bool leads_on = nodes_[node].ends_path || !nodes_[node].successors.empty();
      if (!leads_on && node != TraceGraph::kStart.value) Report(Rule::kEnds, node, "leads to no end");
    });
  }

  std::span<const Node> nodes_;
  std::vector<Violation> found_;
};

}  // namespace

std::vector<Violation> Validate(std::span<const Node> nodes) { return Validator(nodes).Run(); }

std::string Describe(std::span<const Violation> violations) {
  std::string lines;
  for (const Violation& violation : violations) lines += violation.text + '\n';
  return lines;
}

}  // namespace outrider::trace
