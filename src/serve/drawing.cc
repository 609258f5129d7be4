#include "serve/drawing.h"

#include <algorithm>
#include <exception>
#include <span>
#include <string>
#include <utility>

#include "sampling/likeliest.h"
#include "sampling/logprobs.h"
#include "sampling/sampler.h"

namespace outrider::serve {
namespace {

base::Result<int32_t> Chosen(int64_t id, int64_t token) {
  if (id != kNoId) return static_cast<int32_t>(id);
  return base::Fail("E_LOGITS", "token " + std::to_string(token) +
                                    " of the text: a logit is infinite or not a number, expected finite ones");
}

base::Result<int32_t> TokenOf(const RequestState& state, std::span<const float> logits) {
  const SamplingParams& s = state.request.sampling;
  std::vector<float> changed;
  if (state.penalised()) {
    changed.assign(logits.begin(), logits.end());
    state.counts.Apply({s.presence_penalty, s.frequency_penalty, s.repetition_penalty}, changed);
    logits = changed;
  }
  const sampling::Sampling plain{s.temperature, s.top_k, s.top_p, s.seed};
  return Chosen(sampling::PickToken(logits, plain, static_cast<uint64_t>(state.draws)), state.length());
}

TokenLogprob LogprobOf(std::span<const float> logits, int32_t token, int64_t top) {
  sampling::Logprobs found = sampling::LogprobsOf(logits, token, top);
  return {token, found.of_token, std::move(found.top)};
}

base::Result<std::vector<TokenLogprob>> EchoLogprobs(const SliceRun& slice, std::span<const float> logits,
                                                     size_t vocab) {
  const RequestState& state = *slice.state;
  std::vector<TokenLogprob> out;
  if (!state.echoes()) return out;
  const int64_t first = state.computed + slice.tokens - slice.rows;  // the token of the first row
  for (int64_t token = std::max(first, state.echoed); token < state.computed + slice.tokens; ++token) {
    if (token + 1 >= state.prompt_tokens()) break;
    const auto row = logits.subspan(static_cast<size_t>(token - first) * vocab, vocab);
    if (auto some = Chosen(sampling::LikeliestId(row), token + 1); !some) return tl::unexpected(some.error());
    out.push_back(LogprobOf(row, state.text[static_cast<size_t>(token + 1)], state.request.logprobs));
  }
  return out;
}

Drawn DrawOrThrow(const SliceRun& slice, const StepRows::Of& rows) {
  const RequestState& state = *slice.state;
  const size_t vocab = rows.logits.size() / static_cast<size_t>(std::max<int64_t>(slice.rows, 1));
  Drawn drawn;
  auto echoed = EchoLogprobs(slice, rows.logits, vocab);
  if (!echoed) drawn.token = tl::unexpected(echoed.error());
  if (echoed) drawn.echoed = *std::move(echoed);
  if (!drawn.token || !slice.draws()) return drawn;
  const auto last = rows.logits.last(vocab);
  drawn.token = rows.likeliest.empty() ? TokenOf(state, last) : Chosen(rows.likeliest.back(), state.length());
  if (!drawn.token) return drawn;
  drawn.stops = std::ranges::find(state.request.stop_ids, *drawn.token) != state.request.stop_ids.end();
  if (!drawn.stops && state.request.logprobs >= 0)
    drawn.told.push_back(LogprobOf(last, *drawn.token, state.request.logprobs));
  return drawn;
}

}  // namespace

Drawn DrawFrom(const SliceRun& slice, const StepRows::Of& rows) noexcept {
  try {
    return DrawOrThrow(slice, rows);
  } catch (const std::exception& e) {
    Drawn failed;
    failed.token = base::Fail("E_INTERNAL", std::string("the choice of a token: ") + e.what());
    return failed;
  }
}

}  // namespace outrider::serve
