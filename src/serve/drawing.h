#pragma once
// From the rows of a step to the next token and to what is told about it.

#include <vector>

#include "base/result.h"
#include "serve/request_state.h"
#include "serve/step.h"

namespace outrider::serve {

// What a slice's rows give.
struct Drawn {
  // Log-probabilities of the prompt's tokens, the very first apart, that the rows tell and no slice before did.
  std::vector<TokenLogprob> echoed;
  // Where the slice ends its text: the next token, by the request's own sampling parameters, and what it asks to be
  // told of it. Codes: E_LOGITS not a number, or infinite; E_INTERNAL no memory.
  base::Result<int32_t> token = 0;
  bool stops = false;  // the token ends the text and is not told
  std::vector<TokenLogprob> told;
};

// Changes nothing of the request, and throws nothing: several threads may draw for several requests.
Drawn DrawFrom(const SliceRun& slice, const StepRows::Of& rows) noexcept;

}  // namespace outrider::serve
