#include "plan/blocks.h"

#include <algorithm>

#include "trace/chains.h"

namespace outrider::plan {
namespace {

using trace::Chains;
using trace::TraceGraph;

std::vector<BlockId> BlocksBehind(const TraceGraph& graph, trace::NodeId node, const Chains& chains) {
  std::vector<BlockId> blocks;
  for (const trace::Edge& edge : graph.Successors(node)) blocks.emplace_back(chains.of_node[edge.to.value]);
  return blocks;
}

// Chains are sorted by the level of their first node, and edges go up in that level, so one pass settles all.
void AssignLevels(std::vector<Block>& blocks) {
  for (const Block& block : blocks) {
    for (const BlockId next : block.successors) {
      uint32_t& level = blocks[next.value].level;
      level = std::max(level, block.level + 1);
    }
  }
}

// Marks the cases in [first, last) as left out by some path.
void MarkSkipped(std::vector<SwitchCase>& cases, size_t first, size_t last) {
  for (size_t level = first; level < last; ++level) cases[level].may_skip = true;
}

}  // namespace

BlockPlan AssignCases(const TraceGraph& graph) {
  Chains chains = trace::FindChains(graph);
  BlockPlan plan;
  for (std::vector<trace::NodeId>& nodes : chains.nodes) {
    Block& block = plan.blocks.emplace_back();
    block.successors = BlocksBehind(graph, nodes.back(), chains);
    block.ends_path = graph.At(nodes.back()).ends_path;
    block.nodes = std::move(nodes);
  }
  AssignLevels(plan.blocks);

  for (uint32_t i = 0; i < plan.blocks.size(); ++i) {
    const uint32_t level = plan.blocks[i].level;
    if (level >= plan.cases.size()) plan.cases.resize(level + 1);
    plan.cases[level].arms.emplace_back(i);
  }

  const size_t level_count = plan.cases.size();
  for (const BlockId first : BlocksBehind(graph, TraceGraph::kStart, chains)) {
    MarkSkipped(plan.cases, 0, plan.At(first).level);
  }
  if (graph.At(TraceGraph::kStart).ends_path) MarkSkipped(plan.cases, 0, level_count);
  for (const Block& block : plan.blocks) {
    for (const BlockId next : block.successors) MarkSkipped(plan.cases, block.level + 1, plan.At(next).level);
    if (block.ends_path) MarkSkipped(plan.cases, block.level + 1, level_count);
  }
  return plan;
}

}  // namespace outrider::plan
