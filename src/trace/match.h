#pragma once
// When an operator call equals a node: the pure comparisons behind walking and merging.

#include <span>

#include "trace/trace_graph.h"

namespace outrider::trace {

// Each input is among the known producers of its slot.
bool InputsAccepted(const Node& node, std::span<const Input> inputs);

// The same, except that a kValue input may have any producer where the slot holds kValue producers.
bool InputsFit(const Node& node, std::span<const Input> inputs);

// Some operator call is accepted by both nodes. `extra`, if not empty, counts as one more producer for each slot of
// `a`.
bool Overlap(const Node& a, const Node& b, std::span<const Input> extra = {});

}  // namespace outrider::trace
