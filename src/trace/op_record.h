#pragma once
// What one operator call looks like to the trace room: ids only, no tensors. The room that records (seam) interns
// operators, structural attributes and environment into a SignatureId and keeps the meaning of that id for itself.

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"

namespace outrider::trace {

using SignatureId = base::Id<struct SignatureTag>;
using NodeId = base::Id<struct NodeTag>;

// Where an input comes from.
enum class Origin : uint8_t {
  kNone,        // undefined tensor or None
  kValue,       // output `index` of node (or, in a Trace, of op) `producer`
  kPersistent,  // state that outlives the step; `index` is its persistent id
  kFeed,        // anything else that enters from the host
};

struct Input {
  Origin origin = Origin::kNone;
  NodeId producer;     // kValue only
  uint32_t index = 0;  // kValue: output index; kPersistent: persistent id
  friend bool operator==(const Input&, const Input&) = default;
};

// One recorded operator call. In a Trace, `Input::producer` counts ops of the same trace (0 = first op).
struct OpRecord {
  SignatureId signature;
  std::vector<Input> inputs;
  uint16_t outputs = 0;
  bool fetched = false;  // host code read a value of this op
};

using Trace = std::vector<OpRecord>;

}  // namespace outrider::trace
