#pragma once
// Basic blocks of a TraceGraph and their assignment to switch-cases by level.
//
// Running the cases in order, with at most one block each, reproduces every path of the graph: two blocks on one path
// always have different levels, because the level of a block is its longest distance from START.

#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "trace/trace_graph.h"

namespace outrider::plan {

using BlockId = base::Id<struct BlockTag>;

struct Block {
  std::vector<trace::NodeId> nodes;  // a maximal chain, in path order
  std::vector<BlockId> successors;
  uint32_t level = 0;  // blocks that follow START directly and nothing else have level 0
  bool ends_path = false;
};

struct SwitchCase {
  std::vector<BlockId> arms;  // blocks of one level
  bool may_skip = false;      // some path runs none of them

  // One arm that is always taken needs no message from the host.
  bool NeedsChoice() const { return arms.size() > 1 || may_skip; }
};

struct BlockPlan {
  std::vector<Block> blocks;
  std::vector<SwitchCase> cases;  // by level
  const Block& At(BlockId block) const { return blocks[block.value]; }
};

BlockPlan AssignCases(const trace::TraceGraph& graph);

}  // namespace outrider::plan
