#pragma once
// Cuts the ops of one path into the parts that are launched one by one, each when the host has validated all of it.
//
// A part ends behind an op after which the host waits for a value: a later end would leave host and runner waiting for
// each other. A part also ends behind the backward pass, so that the device works while the host goes through the
// optimizer; as this cut is not needed, it is only made where the ops before it leave nothing to undo.

#include <cstdint>
#include <span>
#include <vector>

namespace outrider::plan {

struct LinearOp {
  uint32_t event = 0;             // host event that issued it; never decreases along the list
  bool ends_backward = false;     // last op of a backward pass
  bool fetched = false;           // the host waits for a value after this op's event and before the next
  bool late_bound = false;        // takes a scalar that is fed anew in each step
  bool persistent_write = false;  // writes state that outlives the step
  bool rng = false;               // draws random numbers
};

// Ops [begin, end) of the list. The body [begin, tail_begin) can be replayed as one unit; the tail [tail_begin, end)
// starts at the first late-bound op and runs op by op.
struct Part {
  uint32_t begin = 0;
  uint32_t tail_begin = 0;
  uint32_t end = 0;
  bool needs_pre_image = false;  // runs before the step is validated, and has effects that a divergence must undo
  friend bool operator==(const Part&, const Part&) = default;
};

enum class PreImages : uint8_t {
  kNone,  // cut behind the backward pass only where nothing needs undoing
  kKept,  // the caller keeps old values and generator states for parts that need them
};

// Parts cover the list in order; cuts are moved to the end of their event. An empty list has no parts.
std::vector<Part> CutParts(std::span<const LinearOp> ops, PreImages pre_images);

}  // namespace outrider::plan
