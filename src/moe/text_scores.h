#pragma once
// How likely a model holds given continuations of given texts: what standard task sets ask.

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "moe/routed_model.h"
#include "moe/workbench.h"

namespace outrider::moe {

// Answers in the order of queries and targets. The queries are one batch: each is padded to the longest, and none sees
// another; what all begin with is computed once. Codes: E_OPTION: an empty query, an id outside the vocabulary, a
// target that is empty or longer than its inputs, more tokens than the model has positions, or ids by the text's
// domain, which such text has not.
base::Result<std::vector<std::vector<TextAnswer>>> ScoreTexts(const RoutedModel& model, EvalMode mode,
                                                              std::span<const TextQuery> queries);

}  // namespace outrider::moe
