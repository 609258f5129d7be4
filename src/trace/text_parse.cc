#include <limits>
#include <map>
#include <utility>

#include "trace/text.h"
#include "trace/text_scanner.h"
#include "trace/validate.h"

namespace outrider::trace {
namespace {

constexpr uint64_t kNodeIdMax = (1 << 20) - 1;     // node ids are array indices, so a wild one would cost memory
constexpr uint64_t kCountMax = uint64_t{1} << 62;  // leaves room to count on
constexpr uint32_t kIndexMax = std::numeric_limits<uint32_t>::max() - 1;

class Parser {
 public:
  explicit Parser(std::string_view text) : scan_(text) {}

  base::Result<ParsedGraph> Graph();
  base::Result<ParsedTraces> Traces();

 private:
  Input ParseInput();
  std::vector<Slot> ParseSlots();
  SignatureId ParseSignature();
  void ParseTail(Node& node);
  std::pair<NodeId, Node> ParseNode();
  OpRecord ParseOp(const Trace& before);
  Limits ParseLimits();

  TextScanner scan_;
  NameTable names_;
};

Input Parser::ParseInput() {
  Input input;
  if (scan_.Take("%")) {
    input.origin = Origin::kValue;
    input.producer = NodeId{static_cast<uint32_t>(scan_.Number(kNodeIdMax))};
    scan_.Expect(".");
    input.index = static_cast<uint32_t>(scan_.Number(kIndexMax));
  } else if (scan_.Take("feed")) {
    input.origin = Origin::kFeed;
  } else if (scan_.Take("p")) {
    input.origin = Origin::kPersistent;
    input.index = static_cast<uint32_t>(scan_.Number(kIndexMax));
  } else if (!scan_.Take("none")) {
    scan_.Fail("expected an input");
  }
  return input;
}

std::vector<Slot> Parser::ParseSlots() {
  std::vector<Slot> slots;
  scan_.Expect("(");
  if (scan_.Take(")")) return slots;
  do {
    Slot& slot = slots.emplace_back();
    do {
      slot.producers.push_back(ParseInput());
    } while (scan_.Take("|"));
  } while (scan_.Take(","));
  scan_.Expect(")");
  return slots;
}

SignatureId Parser::ParseSignature() {
  const std::string name = scan_.Name();
  scan_.Expect("#");
  const SignatureId id{static_cast<uint32_t>(scan_.Number(kIndexMax))};
  const auto [known, is_new] = names_.emplace(id, name);
  if (!is_new && known->second != name) scan_.Fail("signature " + std::to_string(id.value) + " has two names");
  return id;
}

void Parser::ParseTail(Node& node) {
  scan_.Expect("visits");
  node.visits = scan_.Number(kCountMax);
  scan_.Expect("last");
  node.last_visit = scan_.Number(kCountMax);
  node.fetched = scan_.Take("fetched");
  node.ends_path = scan_.Take("end");
  if (!scan_.Take("to")) return;
  do {
    scan_.Expect("%");
    Edge edge{NodeId{static_cast<uint32_t>(scan_.Number(kNodeIdMax))}};
    scan_.Expect(":");
    edge.taken = scan_.Number(kCountMax);
    node.successors.push_back(edge);
  } while (scan_.Take(","));
}

std::pair<NodeId, Node> Parser::ParseNode() {
  scan_.Expect("%");
  const NodeId id{static_cast<uint32_t>(scan_.Number(kNodeIdMax))};
  Node node;
  scan_.Expect("=");
  node.signature = ParseSignature();
  node.inputs = ParseSlots();
  scan_.Expect("outputs");
  node.outputs = static_cast<uint16_t>(scan_.Number(std::numeric_limits<uint16_t>::max()));
  scan_.Expect("level");
  node.level = static_cast<uint32_t>(scan_.Number(kIndexMax));
  ParseTail(node);
  return {id, std::move(node)};
}

Limits Parser::ParseLimits() {
  Limits limits;
  scan_.Expect("nodes_max");
  limits.nodes_max = static_cast<uint32_t>(scan_.Number(kIndexMax));
  scan_.Expect("paths_max");
  limits.paths_max = static_cast<uint32_t>(scan_.Number(kIndexMax));
  if (limits.nodes_max == 0 || limits.paths_max == 0) scan_.Fail("limits must be positive");
  return limits;
}

// Nodes by id, with dead ones where the text has none, and predecessors that mirror the edges.
std::vector<Node> Assemble(std::map<NodeId, Node> nodes) {
  std::vector<Node> all(nodes.rbegin()->first.value + 1);
  for (Node& node : all) node.alive = false;
  for (auto& [id, node] : nodes) all[id.value] = std::move(node);
  for (uint32_t from = 0; from < all.size(); ++from) {
    for (const Edge& edge : all[from].successors) {
      if (edge.to.value < all.size() && all[edge.to.value].alive) all[edge.to.value].predecessors.emplace_back(from);
    }
  }
  return all;
}

base::Result<ParsedGraph> Parser::Graph() {
  scan_.Expect("graph");
  const Limits limits = ParseLimits();
  std::map<NodeId, Node> nodes;
  scan_.Expect("start");
  ParseTail(nodes[TraceGraph::kStart]);
  while (!scan_.AtEnd()) {
    auto [id, node] = ParseNode();
    if (!nodes.emplace(id, std::move(node)).second) scan_.Fail("%" + std::to_string(id.value) + " is there twice");
  }
  if (scan_.Failed()) return tl::unexpected(scan_.Failure());

  std::vector<Node> all = Assemble(std::move(nodes));
  if (const auto violations = Validate(all); !violations.empty()) return base::Fail("PARSE", Describe(violations));
  return ParsedGraph{TraceGraph::FromNodes(std::move(all), limits), std::move(names_)};
}

OpRecord Parser::ParseOp(const Trace& before) {
  OpRecord op;
  scan_.Expect("%");
  if (scan_.Number(kNodeIdMax) != before.size()) scan_.Fail("expected op %" + std::to_string(before.size()));
  scan_.Expect("=");
  op.signature = ParseSignature();
  for (const Slot& slot : ParseSlots()) {
    const Input& input = slot.producers.front();
    if (slot.IsPhi()) scan_.Fail("an op of a trace has one producer for each input");
    if (input.origin == Origin::kValue &&
        (input.producer.value >= before.size() || input.index >= before[input.producer.value].outputs)) {
      scan_.Fail("%" + std::to_string(input.producer.value) + "." + std::to_string(input.index) + " is not known yet");
    }
    op.inputs.push_back(input);
  }
  scan_.Expect("outputs");
  op.outputs = static_cast<uint16_t>(scan_.Number(std::numeric_limits<uint16_t>::max()));
  op.fetched = scan_.Take("fetched");
  return op;
}

base::Result<ParsedTraces> Parser::Traces() {
  ParsedTraces parsed;
  while (!scan_.AtEnd()) {
    if (scan_.Take("trace")) {
      parsed.traces.emplace_back();
    } else if (parsed.traces.empty()) {
      scan_.Fail("expected 'trace'");
    } else {
      parsed.traces.back().push_back(ParseOp(parsed.traces.back()));
    }
  }
  if (scan_.Failed()) return tl::unexpected(scan_.Failure());
  parsed.names = std::move(names_);
  return parsed;
}

}  // namespace

base::Result<ParsedGraph> ParseGraph(std::string_view text) { return Parser(text).Graph(); }

base::Result<ParsedTraces> ParseTraces(std::string_view text) { return Parser(text).Traces(); }

}  // namespace outrider::trace
