#pragma once
// What one instruction set contributes: the inner loops of both forms, as plain functions over plain structs.
//
// Prefill works on segments, the tokens of one expert. Three steps, each cut into tasks that write disjoint memory:
//   pack_tokens   the segment's rows of x, into the layout that the loops read
//   gate_up       hidden = silu(gate x) * (up x) for a range of the expert's channels
//   down          y for a range of outputs, over all of the expert's channels in stored order
// A number of the result is one chain of operations in an order that depends on the layer and the expert only.
//
// Units that are compiled for one instruction set include this header: nothing here may have external linkage.

#include <cstddef>
#include <cstdint>

#include "kernels/number.h"

namespace outrider::kernels {

struct LayerView {
  const std::byte* records = nullptr;  // channel_store.h
  int64_t width = 0;
  Number number = Number::kF32;
};

struct Segment {
  const int32_t* tokens = nullptr;  // rows of x and y
  int64_t count = 0;
  const int32_t* channels = nullptr;  // ascending in stored order
  int64_t active = 0;                 // number of channels
  std::byte* packed = nullptr;        // x, Padded(count) * packed_bytes(width)
  std::byte* hidden = nullptr;        // Padded(count) * hidden_bytes(active)
};

struct PrefillEngine {
  const char* name;
  Number number;
  int64_t token_block;                                      // a segment is padded to a multiple of this many tokens
  int64_t channel_block;                                    // channels of one gate_up task
  int64_t output_block;                                     // outputs of one down task; the last one may be shorter
  int64_t (*packed_bytes)(int64_t width);                   // per padded token
  int64_t (*hidden_bytes)(int64_t active);                  // per padded token
  int64_t (*scratch_bytes)(int64_t width, int64_t active);  // per worker
  // Token blocks [first, last) of the segment.
  void (*pack_tokens)(const Segment& segment, const void* x, int64_t width, int64_t first, int64_t last);
  // Channels [first, last) of the expert's list, first a multiple of channel_block.
  void (*gate_up)(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, std::byte* scratch);
  // Outputs [first, last), first a multiple of output_block.
  void (*down)(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, void* y,
               std::byte* scratch);
};

constexpr int64_t kDecodeTokensMax = 32;

// Tokens of a step, each with the bit of its expert.
struct StepTokens {
  const float* x = nullptr;  // [count, width]
  const uint16_t* bits = nullptr;
  int64_t count = 0;
};

struct DecodeEngine {
  const char* name;
  Number number;
  // Adds to sums [count, width], which starts at zero, what channels [first, last) contribute; a channel counts for the
  // tokens whose bit is in its signature.
  void (*walk)(const LayerView& layer, const uint16_t* signatures, const StepTokens& tokens, int64_t first,
               int64_t last, float* sums);
};

// The engines of one instruction set by number; null where it has none of its own.
struct EngineSet {
  const PrefillEngine* prefill[2] = {nullptr, nullptr};
  const DecodeEngine* decode[2] = {nullptr, nullptr};
};

EngineSet PortableEngines();

}  // namespace outrider::kernels
