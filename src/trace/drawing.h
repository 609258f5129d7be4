#pragma once
// A TraceGraph as boxes and arrows, before any drawing language: dot.h and mermaid.h only print it.

#include <cstdint>
#include <string>
#include <vector>

#include "trace/names.h"
#include "trace/trace_graph.h"

namespace outrider::trace {

struct DrawingOptions {
  uint32_t ops_max = 6;  // a longer chain shows its first and last op and counts the rest
};

struct Box {
  std::vector<std::string> lines;
  bool fetches = false;  // host code reads a value made in this box
};

struct Arrow {
  uint32_t from = 0;  // kStartBox, kEndBox, or an index into boxes
  uint32_t to = 0;
  std::string label;  // how often it was taken; empty for an end, which is not counted
};

struct Drawing {
  static constexpr uint32_t kStartBox = ~uint32_t{0};
  static constexpr uint32_t kEndBox = kStartBox - 1;

  std::vector<Box> boxes;  // one per chain, in the order of FindChains
  std::vector<Arrow> arrows;
};

// An op reads `name (feeds 1, phi 2) => fetched`: it takes one feed, two of its inputs are phis, the host reads it.
Drawing Draw(const TraceGraph& graph, const NameOf& name_of, DrawingOptions options = {});

}  // namespace outrider::trace
