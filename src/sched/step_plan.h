#pragma once
// One step as data: what may run, and what a policy chose. Policies are pure functions from a Snapshot to a StepPlan.

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"

namespace outrider::sched {

struct RequestTag;
using RequestId = base::Id<RequestTag, uint64_t>;  // ascending in order of arrival
using ExpertSet = uint16_t;                        // bit e: expert e

enum class Lane : uint8_t { kPrefill, kDecode };

// A request that can take part in the next step.
struct ReadyItem {
  RequestId request;
  Lane lane = Lane::kDecode;
  // Of the tokens that are left, in order: one in the decode lane, the rest of the prompt in the prefill lane. Empty
  // for a dense model; `tokens` counts in any case.
  std::span<const uint8_t> experts;
  int64_t tokens = 1;
  // Number of the first step that could have run the first of these tokens: a prompt becomes younger with each chunk.
  int64_t ready_since = 0;
  int64_t priority = 0;  // 0 or 1, the higher first
};

// The fields below C belong to the policy `outrider`; each of its mechanisms can be switched off alone.
struct StepLimits {
  int64_t decode_tokens = 0;     // B
  int64_t prefill_tokens = 0;    // C, of a step
  int64_t distinct_experts = 0;  // K, of the decode lane; 0: no limit
  int64_t age_max = 0;           // W, steps: a decode item this old is overdue; 0: no decode item is held, K is void
  int64_t prefill_age_max = 0;   // W_p, steps: likewise for prompts; 0: prompts run in order of arrival
  // Steps that prompts wait at most: while more decode items are ready than B, since a text more would only wait among
  // them; and for others to share a pass of prompts, where that has a cost of its own. 0: they wait for neither.
  int64_t prompt_hold_max = 0;
  int64_t ffn_bytes_max = 0;  // of the experts of a step: chunks of prompts are cut there; 0: no limit
  // Where all decode items fit B and K, some are held only if the others alone give at least this many times the tokens
  // per second: what is held has to be read for later, and seldom joins enough others. 1: whenever it is more.
  double hold_gain_min = 1.5;
};

// Passes that prompts have for themselves, as measured.
struct PromptPass {
  double setup_s = 0;        // of a pass, however few its tokens; 0: prompts run with everyone else
  double prompts_per_s = 0;  // that become ready
  double step_s = 0;         // of a step without such a pass
};

struct Snapshot {
  int64_t step = 0;
  std::span<const ReadyItem> items;  // by request, ascending
  StepLimits limits;
  int64_t experts = 0;                 // N; 0: dense
  std::span<const int64_t> ffn_bytes;  // [2^N] bytes of FFN weights read for a set of experts; [1] for a dense model
  int64_t fixed_bytes = 0;             // read by every step
  double bytes_per_s = 0;              // measured rate of weight reading
  double token_s = 0;                  // measured time of one more token, weights apart
  PromptPass prompt_pass;
};

struct Slice {
  RequestId request;
  Lane lane = Lane::kDecode;
  int64_t tokens = 0;  // the first of the item's
  friend bool operator==(const Slice&, const Slice&) = default;
};

struct StepPlan {
  std::vector<Slice> slices;    // in the order of running
  std::vector<RequestId> held;  // ready, left out on purpose though there was room
  ExpertSet experts = 0;
  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

}  // namespace outrider::sched
