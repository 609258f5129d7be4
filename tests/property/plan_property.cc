#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include <algorithm>
#include <set>

#include "plan/blocks.h"
#include "plan/liveness.h"
#include "plan/segments.h"
#include "support/random_traces.h"

namespace outrider::plan {
namespace {

using trace::AnyTraces;
using trace::NodeId;
using trace::TraceGraph;

// Some START -> END path of the graph, recorded or not.
std::vector<NodeId> AnyPath(const TraceGraph& graph) {
  std::vector<NodeId> path;
  NodeId at = TraceGraph::kStart;
  while (true) {
    const auto edges = graph.Successors(at);
    const size_t choices = edges.size() + (graph.At(at).ends_path ? 1 : 0);
    const size_t choice = Below(static_cast<uint32_t>(choices));
    if (choice == edges.size()) return path;
    at = edges[choice].to;
    path.push_back(at);
  }
}

// Runs the cases in order, taking in each the arm that goes on with the path; returns what was run.
std::vector<NodeId> RunCases(const BlockPlan& plan, const std::vector<NodeId>& path) {
  std::vector<NodeId> run;
  for (const SwitchCase& one : plan.cases) {
    const auto goes_on = [&](BlockId block) {
      return run.size() < path.size() && plan.At(block).nodes.front() == path[run.size()];
    };
    const auto arm = std::find_if(one.arms.begin(), one.arms.end(), goes_on);
    if (arm == one.arms.end()) {
      RC_ASSERT(one.may_skip);
    } else {
      run.insert(run.end(), plan.At(*arm).nodes.begin(), plan.At(*arm).nodes.end());
    }
  }
  return run;
}

RC_GTEST_PROP(BlocksProperty, CasesReproduceEveryPath, ()) {
  TraceGraph graph;
  for (const trace::Trace& trace : AnyTraces()) graph.Merge(trace, Below(5));
  const BlockPlan plan = AssignCases(graph);
  for (int i = 0; i < 10; ++i) {
    const std::vector<NodeId> path = AnyPath(graph);
    RC_ASSERT(RunCases(plan, path) == path);
  }
}

RC_GTEST_PROP(BlocksProperty, BlocksPartitionTheGraph, ()) {
  TraceGraph graph;
  for (const trace::Trace& trace : AnyTraces()) graph.Merge(trace);
  const BlockPlan plan = AssignCases(graph);
  std::set<NodeId> seen;
  for (const Block& block : plan.blocks) seen.insert(block.nodes.begin(), block.nodes.end());
  size_t in_blocks = 0;
  for (const Block& block : plan.blocks) in_blocks += block.nodes.size();
  size_t in_cases = 0;
  for (const SwitchCase& one : plan.cases) in_cases += one.arms.size();
  RC_ASSERT(in_blocks == graph.NodeCount() - 1);
  RC_ASSERT(seen.size() == in_blocks);
  RC_ASSERT(in_cases == plan.blocks.size());
  for (const Block& block : plan.blocks) {
    for (const BlockId next : block.successors) RC_ASSERT(plan.At(next).level > block.level);
  }
}

std::vector<ValueSlot> AnySlots(uint32_t slot_count) {
  std::vector<ValueSlot> slots;
  for (uint32_t i = Below(4); i > 0; --i) slots.emplace_back(Below(slot_count));
  return slots;
}

RC_GTEST_PROP(LivenessProperty, EachUsedSlotIsDroppedOnceBehindItsLastUse, ()) {
  constexpr uint32_t kSlots = 8;
  std::vector<SlotUse> ops(Below(12));
  std::set<ValueSlot> used;
  for (SlotUse& op : ops) {
    op = {AnySlots(kSlots), AnySlots(kSlots)};
    used.insert(op.reads.begin(), op.reads.end());
    used.insert(op.writes.begin(), op.writes.end());
  }
  const std::vector<ValueSlot> kept = AnySlots(kSlots);
  const auto drops = DropLists(ops, kept, kSlots);

  std::set<ValueSlot> gone;
  for (size_t i = 0; i < ops.size(); ++i) {
    for (const ValueSlot slot : ops[i].reads) RC_ASSERT(!gone.contains(slot));
    for (const ValueSlot slot : ops[i].writes) RC_ASSERT(!gone.contains(slot));
    for (const ValueSlot slot : drops[i]) {
      RC_ASSERT(gone.insert(slot).second);
      RC_ASSERT(std::count(ops[i].reads.begin(), ops[i].reads.end(), slot) +
                    std::count(ops[i].writes.begin(), ops[i].writes.end(), slot) >
                0);
    }
  }
  for (const ValueSlot slot : kept) {
    RC_ASSERT(!gone.contains(slot));
    used.erase(slot);
  }
  RC_ASSERT(gone == used);
}

std::vector<LinearOp> AnyLinearOps() {
  std::vector<LinearOp> ops(Below(16));
  uint32_t event = 0;
  for (LinearOp& op : ops) {
    event += Below(2);
    const auto rarely = [] { return Below(6) == 0; };
    op = {event, rarely(), rarely(), rarely(), rarely(), rarely()};
  }
  return ops;
}

RC_GTEST_PROP(SegmentsProperty, PartsCoverTheListAndKeepTheirPromises, ()) {
  const std::vector<LinearOp> ops = AnyLinearOps();
  const bool kept = *rc::gen::arbitrary<bool>();
  const std::vector<Part> parts = CutParts(ops, kept ? PreImages::kKept : PreImages::kNone);
  uint32_t at = 0;
  for (const Part& part : parts) {
    RC_ASSERT(part.begin == at);
    RC_ASSERT(part.begin < part.end);
    RC_ASSERT(part.begin <= part.tail_begin);
    RC_ASSERT(part.tail_begin <= part.end);
    for (uint32_t i = part.begin; i < part.tail_begin; ++i) RC_ASSERT(!ops[i].late_bound);
    if (part.tail_begin < part.end) RC_ASSERT(ops[part.tail_begin].late_bound);
    if (part.end < ops.size()) RC_ASSERT(ops[part.end - 1].event != ops[part.end].event);

    bool effect = false;
    bool fetched_in_last_event = false;
    for (uint32_t i = part.begin; i < part.end; ++i) {
      effect = effect || ops[i].persistent_write || ops[i].rng;
      const bool in_last_event = ops[i].event == ops[part.end - 1].event;
      RC_ASSERT(!ops[i].fetched || in_last_event);
      fetched_in_last_event = fetched_in_last_event || (ops[i].fetched && in_last_event);
    }
    RC_ASSERT(part.needs_pre_image == (effect && part.end < ops.size()));
    if (part.needs_pre_image && !kept) RC_ASSERT(fetched_in_last_event);
    at = part.end;
  }
  RC_ASSERT(at == ops.size());
}

}  // namespace
}  // namespace outrider::plan
