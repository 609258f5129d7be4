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
constexpr int64_t kPageTokens = 16;  // of a page of keys and values

// Tokens of a step, each with the bit of its expert.
struct StepTokens {
  const float* x = nullptr;  // [count, width]
  const uint16_t* bits = nullptr;
  int64_t count = 0;
  const std::byte* staged = nullptr;  // [count, staged_bytes(width)], where the engine stages
};

// Channels [first, first + run), [first + stride, first + stride + run) and so on, as far as they are below `end`.
struct ChannelRuns {
  int64_t first = 0, run = 0, stride = 0, end = 0;
  bool cold = true;   // nothing of them has been prefetched
  int64_t then = -1;  // `first` of the runs that this thread will probably walk next, to be prefetched; -1: none
};

struct DecodeEngine {
  const char* name;
  Number number;
  // Adds to sums [count, width], which starts at zero, what these channels contribute; a channel counts for the tokens
  // whose bit is in its signature.
  void (*walk)(const LayerView& layer, const uint16_t* signatures, const StepTokens& tokens,
               const ChannelRuns& channels, float* sums);
  // What the walk reads of one token instead of x; both null where it reads x itself.
  int64_t (*staged_bytes)(int64_t width) = nullptr;
  void (*stage)(const float* x, int64_t width, std::byte* to) = nullptr;
};

// Rounds blocks of kBlock numbers to whole numbers in [-32767, 32767] and a scale each: fine enough beside weights of 8
// bits, and as fast as 8 bits on processors that multiply pairs of 16 bits.
using QuantiseFunction = void (*)(const float* x, int64_t blocks, int16_t* q, float* scales);

// Rows of x that a walk over panels reads: fp32, or for kI8 as quantise leaves them.
struct TokenBlocks {
  const float* x = nullptr;
  int64_t stride = 0;  // numbers of a row, a multiple of kBlock
  int64_t count = 0;
  const int16_t* q = nullptr;
  const float* scales = nullptr;  // one per block
};

struct PanelView {
  const std::byte* panels = nullptr;  // matrix.h
  int64_t panel_bytes = 0;
  int64_t columns = 0;  // padded
  int64_t rows = 0;     // not padded
  const float* bias = nullptr;
};

struct LinearOutput {
  float* y = nullptr;  // [count, stride]
  int64_t stride = 0;
  bool add = false;  // y += ...
};

struct LinearEngine {
  const char* name;
  Number number;
  // Rows of panels [first, last), for all tokens.
  void (*walk)(const PanelView& view, const TokenBlocks& tokens, int64_t first, int64_t last,
               const LinearOutput& output);
  QuantiseFunction quantise;
};

// What one token sees of one head's keys and values (attention.h has the layout of a page).
struct KvView {
  const float* cache = nullptr;    // of this head in page 0
  int64_t page_floats = 0;         // from one page to the next
  const int32_t* pages = nullptr;  // of positions 0, kPageTokens ...
  int64_t first = 0, last = 0;     // positions seen, both included
  int64_t group = 0;               // heads of the queries
  int64_t head_dim = 0;
  float scale = 1;
};

// Work on single tokens, whatever the number of the weights.
struct TokenEngine {
  const char* name;
  // y = weight * x / sqrt(mean(x^2) + eps); y may be x.
  void (*norm)(const float* x, const float* weight, int64_t size, float eps, float* y);
  void (*silu)(float* x, int64_t size);
  // Turns the pairs (i, i + half) of one head.
  void (*rotate)(float* head, const float* cos, const float* sin, int64_t half);
  // y[i] = parts[i] + parts[stride + i] + ... for `count` parts, in that order, and `size` numbers, times factors[i]
  // where there are factors; or y[i] += ...
  void (*join)(const float* parts, int64_t count, int64_t stride, int64_t size, const float* factors, bool add,
               float* y);
  // q and out [group, head_dim]; scores: memory for group * (last + kPageTokens) numbers.
  void (*attend)(const KvView& view, const float* q, float* scores, float* out);
};

// The engines of one instruction set, by number; null where it has none of its own.
struct EngineSet {
  const PrefillEngine* prefill[kNumbers] = {};
  const DecodeEngine* decode[kNumbers] = {};
  const LinearEngine* linear[kNumbers] = {};
  const TokenEngine* token = nullptr;
};

EngineSet PortableEngines();

}  // namespace outrider::kernels
