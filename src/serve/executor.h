#pragma once
// What the engine needs of a machine that runs the model: routing of tokens ahead of time, and passes over planned
// tokens. Neither knows requests; both find keys and values through page tables that the engine hands in.

#include <cstdint>
#include <span>

#include "base/result.h"

namespace outrider::serve {

using ExpertId = uint8_t;
constexpr ExpertId kNoExpert = 0xff;
constexpr int64_t kNoId = -1;  // where a likeliest id would stand

struct ModelShape {
  int64_t vocab = 0;
  int64_t context = 0;  // tokens; a text may not grow longer
  int64_t experts = 0;  // 0: a dense model, tokens have no expert
  int64_t kv_page_tokens = 16;
  int64_t kv_pages = 0;         // pages of the backbone's cache
  int64_t route_pages = 0;      // pages of the router's cache, kv_page_tokens each; 0 without experts
  int64_t step_tokens_max = 0;  // of one Run
  // Prompts take another path than what is written: keys and values of a token depend on which of both it is.
  bool prompts_apart = false;
};

// Consecutive tokens of one request in a pass, behind what its pages hold already.
struct TokenRun {
  std::span<const int32_t> ids;
  std::span<const ExpertId> experts;  // one per token, decided before; empty for a dense model
  int64_t position = 0;               // of ids[0]
  std::span<const int32_t> kv_pages;  // of positions [0, position + ids.size()), page k holds kv_page_tokens of them
  int64_t logits_from = 0;            // logits are wanted of ids[logits_from] and later; ids.size(): of none
  int64_t prompt = 0;                 // so many of ids, from the beginning, belong to the prompt, the rest was written
};

// What one pass read and took, for metrics.
struct RunCost {
  int64_t weight_bytes = 0;  // read from memory, each stored byte counted once per pass that touches it
  int64_t ffn_bytes = 0;     // the part of it that depends on the experts
  double seconds = 0;
  // Of passes that prompts had for themselves, a part of the above; 0 where they run with all others.
  double prompt_seconds = 0;
  int64_t prompt_tokens = 0;
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ModelShape& shape() const = 0;
  // Bytes of FFN weights that a pass over tokens of these experts reads (bit e: expert e), summed over layers.
  virtual int64_t FfnBytes(uint16_t experts) const = 0;
  // Bytes that every pass reads, whatever its experts.
  virtual int64_t FixedBytes() const = 0;
  // Runs all layers over the runs and writes keys and values into their pages; logits [rows, vocab], the wanted rows of
  // all runs in order. The bits of a token's row depend on its own text, its experts and, with prompts_apart, on where
  // the prompt ends: not on other runs, not on how the text was cut into runs. After a failure the pages of these
  // tokens are undefined, all others untouched; after E_DEVICE the machine is lost, and every further Run fails.
  virtual base::Result<RunCost> Run(std::span<const TokenRun> runs, std::span<float> logits) = 0;
  // As Run, for tokens that are chosen without chance: logits stay where they are. best [rows]: the id of each row's
  // largest logit, the lowest of equals; kNoId where a logit of the row is not a finite number.
  virtual base::Result<RunCost> RunGreedy(std::span<const TokenRun> runs, std::span<int64_t> best) = 0;
};

// Tokens to route, behind those that the pages of the router's cache hold already.
struct RouteRun {
  std::span<const int32_t> ids;
  int64_t position = 0;
  std::span<const int32_t> route_pages;  // of positions [0, position + ids.size())
  ExpertId previous = kNoExpert;         // expert of the token in front of ids[0]
};

class Pregate {
 public:
  virtual ~Pregate() = default;
  // Experts of all tokens of all runs, in order. Bits as in Executor::Run: of a text alone. E_DEVICE as there: the
  // machine is lost.
  virtual base::Result<void> Route(std::span<const RouteRun> runs, std::span<ExpertId> experts) = 0;
};

}  // namespace outrider::serve
