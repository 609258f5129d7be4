#pragma once
// Random traces for property tests. Few signatures and near producers, so that traces share stretches, meet again and
// need phis; the first op of a trace often differs, so that levels do too.

#include <rapidcheck.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "support/below.h"
#include "trace/op_record.h"

namespace outrider::trace {

inline constexpr uint16_t kOutputsMax = 2;

inline Input AnyInput(const Trace& before) {
  const uint32_t kind = Below(16);
  if (kind == 0) return {Origin::kFeed, {}, 0};
  if (kind == 1) return {Origin::kPersistent, {}, Below(3)};
  if (kind == 2 || before.empty()) return {};
  const uint32_t reach = std::min<uint32_t>(4, static_cast<uint32_t>(before.size()));
  const uint32_t producer = static_cast<uint32_t>(before.size()) - 1 - Below(reach);
  return {Origin::kValue, NodeId{producer}, Below(before[producer].outputs)};
}

inline OpRecord AnyOp(const Trace& before) {
  OpRecord op;
  constexpr std::array<uint32_t, 4> kArities{0, 1, 1, 2};
  op.signature = SignatureId{Below(kArities.size())};
  const uint32_t arity = kArities[op.signature.value];
  for (uint32_t i = 0; i < arity; ++i) op.inputs.push_back(AnyInput(before));
  op.outputs = static_cast<uint16_t>(1 + Below(kOutputsMax));
  op.fetched = Below(6) == 0;
  return op;
}

inline Trace AnyTrace(uint32_t length_max = 12) {
  Trace trace;
  const uint32_t length = Below(length_max + 1);
  while (trace.size() < length) trace.push_back(AnyOp(trace));
  return trace;
}

// The trace with some of its ops replaced; what reads them reads the replacement.
inline Trace Mutated(Trace trace) {
  for (size_t i = 0; i < trace.size(); ++i) {
    if (Below(6) != 0) continue;
    const Trace before(trace.begin(), trace.begin() + static_cast<std::ptrdiff_t>(i));
    OpRecord op = AnyOp(before);
    op.outputs = std::max(op.outputs, trace[i].outputs);  // later ops may read any of the old ones
    trace[i] = std::move(op);
  }
  return trace;
}

// The trace without one op; what read it reads the op before it, if there is one with enough outputs, else a feed.
inline Trace Shortened(const Trace& trace) {
  if (trace.empty()) return trace;
  const uint32_t left_out = Below(static_cast<uint32_t>(trace.size()));
  Trace shorter;
  for (uint32_t i = 0; i < trace.size(); ++i) {
    if (i == left_out) continue;
    OpRecord op = trace[i];
    for (Input& input : op.inputs) {
      if (input.origin != Origin::kValue || input.producer.value < left_out) continue;
      const uint32_t moved = input.producer.value - 1;
      const bool kept = input.producer.value > left_out || (left_out > 0 && input.index < trace[moved].outputs);
      input = kept ? Input{Origin::kValue, NodeId{moved}, input.index} : Input{Origin::kFeed, {}, 0};
    }
    shorter.push_back(std::move(op));
  }
  return shorter;
}

// Traces of one program: variations of earlier ones, now and then a new one, now and then an old one again.
inline std::vector<Trace> AnyTraces(uint32_t count_max = 10) {
  std::vector<Trace> traces{AnyTrace()};
  const uint32_t count = 1 + Below(count_max);
  while (traces.size() < count) {
    const Trace earlier = traces[Below(static_cast<uint32_t>(traces.size()))];
    switch (Below(6)) {
      case 0:
        traces.push_back(AnyTrace());
        break;
      case 1:
        traces.push_back(earlier);
        break;
      case 2:
      case 3:
        traces.push_back(Shortened(earlier));
        break;
      default:
        traces.push_back(Mutated(earlier));
    }
  }
  return traces;
}

}  // namespace outrider::trace
