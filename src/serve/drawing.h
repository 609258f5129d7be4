#pragma once
// From the logits of a step to the next token and to what is told about it.

#include <span>

#include "base/result.h"
#include "serve/request_state.h"
#include "serve/step.h"

namespace outrider::serve {

// The next token of a request, by its own sampling parameters. Code: E_LOGITS not a number, or infinite.
base::Result<int32_t> DrawToken(const RequestState& state, std::span<const float> logits);

// The next token of a greedy request, from what Executor::RunGreedy found. Code: E_LOGITS.
base::Result<int32_t> LikeliestToken(const RequestState& state, int64_t likeliest);

// Of `rows` rows; empty of none.
std::span<const float> LastRow(std::span<const float> logits, int64_t rows);

TokenLogprob LogprobOf(std::span<const float> logits, int32_t token, int64_t top);

// Log-probabilities of the prompt's tokens, the very first apart, that the rows of a slice tell and no slice before
// did. `logits`: the slice's rows.
std::vector<TokenLogprob> EchoLogprobs(const SliceRun& slice, std::span<const float> logits);

}  // namespace outrider::serve
