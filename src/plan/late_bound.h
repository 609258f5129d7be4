#pragma once
// Which scalar arguments of device ops are fed anew in each step (a learning rate, a bias correction) and which are
// part of an op's identity. Decided from recordings of one path that agree on everything but scalars.

#include <cstdint>
#include <span>
#include <vector>

namespace outrider::plan {

// A scalar by its bits, so that -0.0 and 0.0 differ and a NaN equals itself. `kind` tells types apart.
struct ScalarBits {
  uint64_t bits = 0;
  uint8_t kind = 0;
  friend bool operator==(const ScalarBits&, const ScalarBits&) = default;
};

using Scalars = std::vector<ScalarBits>;

struct ScalarOp {
  uint32_t event = 0;  // the host event that issued the op
  Scalars scalars;
};

struct ScalarRecording {
  std::vector<Scalars> events;  // per host event, its own scalar arguments
  std::vector<ScalarOp> ops;    // device ops in order
};

// Scalar `scalar` of op `op` is scalar `event_scalar` of the event that issued it.
struct LateBoundScalar {
  uint32_t op = 0;
  uint32_t scalar = 0;
  uint32_t event_scalar = 0;
  friend bool operator==(const LateBoundScalar&, const LateBoundScalar&) = default;
};

enum class MismatchReason : uint8_t {
  kShape,      // the recordings differ in events, ops, or numbers of scalars; nothing else is reported then
  kNoSource,   // a changing op scalar equals no changing scalar of its event: computed from it, or from elsewhere
  kAmbiguous,  // it equals several, none of them at its own position
  kUnused,     // a changing event scalar reaches no op, so it may select code
};

struct ScalarMismatch {
  MismatchReason reason = MismatchReason::kShape;
  uint32_t position = 0;  // op, or event for kUnused
  uint32_t scalar = 0;
  friend bool operator==(const ScalarMismatch&, const ScalarMismatch&) = default;
};

struct ScalarPlan {
  std::vector<LateBoundScalar> late_bound;  // by op, then scalar
  std::vector<ScalarMismatch> mismatches;   // any: the recordings do not agree, all their scalars stay structural
};

// Needs at least two recordings. A scalar that never changed is structural and not listed.
ScalarPlan FindLateBound(std::span<const ScalarRecording> recordings);

}  // namespace outrider::plan
