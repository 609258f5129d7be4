#pragma once
// What a step costs: the model by which policies choose and the simulator keeps time.

#include <cstdint>

#include "sched/step_plan.h"

namespace outrider::sched {

// FFN bytes that tokens of these experts read.
inline int64_t FfnBytes(const Snapshot& snapshot, ExpertSet experts) {
  if (snapshot.experts == 0) return snapshot.ffn_bytes.empty() ? 0 : snapshot.ffn_bytes[0];
  return snapshot.ffn_bytes[experts];
}

// Seconds of a step of `tokens` tokens of these experts. Before a rate is measured, bytes stand for seconds.
inline double StepSeconds(const Snapshot& snapshot, ExpertSet experts, int64_t tokens) {
  const auto bytes = static_cast<double>(snapshot.fixed_bytes + FfnBytes(snapshot, experts));
  if (snapshot.bytes_per_s <= 0) return bytes;
  return bytes / snapshot.bytes_per_s + static_cast<double>(tokens) * snapshot.token_s;
}

}  // namespace outrider::sched
