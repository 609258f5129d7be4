#pragma once
// Cross-entropy of a refactored model on held-out text, per domain and document.

#include <cstdint>
#include <string>
#include <vector>

#include "moe/options.h"
#include "moe/routed_model.h"
#include "moe/token_data.h"
#include "moe/workbench.h"

namespace outrider::moe {

// Per domain, over at most `tokens` tokens of `split`, in texts of options.sequence tokens spread evenly over it; at
// least one text. "unseen" is empty where ids are domains. Random ids are a function of seed, domain and text. Ids of
// at most `trace_tokens` tokens of each are kept, in whole texts spread evenly over those measured.
std::vector<DomainLoss> EvaluateModel(const Options& options, const TokenData& data, const RoutedModel& model,
                                      const std::string& split, EvalMode mode, int64_t tokens,
                                      int64_t trace_tokens = 0);

}  // namespace outrider::moe
