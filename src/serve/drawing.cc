#include "serve/drawing.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "sampling/likeliest.h"
#include "sampling/logprobs.h"
#include "sampling/sampler.h"

namespace outrider::serve {

namespace {

tl::unexpected<base::Error> BadLogits(const RequestState& state) {
  return base::Fail("E_LOGITS", "token " + std::to_string(state.length()) +
                                    " of the text: a logit is infinite or not a number, expected finite ones");
}

}  // namespace

base::Result<int32_t> DrawToken(const RequestState& state, std::span<const float> logits) {
  if (sampling::LikeliestId(logits) == kNoId) return BadLogits(state);
  const SamplingParams& s = state.request.sampling;
  std::vector<float> changed;
  if (state.penalised()) {
    changed.assign(logits.begin(), logits.end());
    state.counts.Apply({s.presence_penalty, s.frequency_penalty, s.repetition_penalty}, changed);
    logits = changed;
  }
  const sampling::Sampling plain{s.temperature, s.top_k, s.top_p, s.seed};
  return static_cast<int32_t>(sampling::PickToken(logits, plain, static_cast<uint64_t>(state.draws)));
}

base::Result<int32_t> LikeliestToken(const RequestState& state, int64_t likeliest) {
  if (likeliest == kNoId) return BadLogits(state);
  return static_cast<int32_t>(likeliest);
}

std::span<const float> LastRow(std::span<const float> logits, int64_t rows) {
  return logits.empty() ? logits : logits.last(logits.size() / static_cast<size_t>(rows));
}

TokenLogprob LogprobOf(std::span<const float> logits, int32_t token, int64_t top) {
  sampling::Logprobs found = sampling::LogprobsOf(logits, token, top);
  return {token, found.of_token, std::move(found.top)};
}

std::vector<TokenLogprob> EchoLogprobs(const SliceRun& slice, std::span<const float> logits) {
  const RequestState& state = *slice.state;
  std::vector<TokenLogprob> out;
  if (!state.echoes()) return out;
  const size_t vocab = logits.size() / static_cast<size_t>(std::max<int64_t>(slice.rows, 1));
  const int64_t first = state.computed + slice.tokens - slice.rows;  // the token of the first row
  for (int64_t token = std::max(first, state.echoed); token < state.computed + slice.tokens; ++token) {
    if (token + 1 >= state.prompt_tokens()) break;
    const auto row = logits.subspan(static_cast<size_t>(token - first) * vocab, vocab);
    out.push_back(LogprobOf(row, state.text[static_cast<size_t>(token + 1)], state.request.logprobs));
  }
  return out;
}

}  // namespace outrider::serve
