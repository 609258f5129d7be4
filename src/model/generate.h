#pragma once
// Continues one text, token by token, with cached keys and values.

#include <cstdint>
#include <functional>
#include <vector>

#include "base/result.h"
#include "model/llama.h"
#include "sampling/sampler.h"

namespace outrider::model {

using sampling::Sampling;

enum class StopReason : uint8_t { kLength, kEndId, kCallback, kContextFull };

struct GenerateOptions {
  int64_t new_tokens_max = 128;
  std::vector<int64_t> stop_ids;  // usually Config::end_ids; passed on, then the text is over
  Sampling sampling;
};

// `on_id` gets every new id as it is made; false ends the text. `prompt`: at least one id. Codes: E_PROMPT;
// E_LOGITS a logit is no finite number.
base::Result<StopReason> Generate(const Config& config, const Parameters& parameters,
                                  const std::vector<int64_t>& prompt, const GenerateOptions& options,
                                  const std::function<bool(int64_t)>& on_id, FfnHook* hook = nullptr);

}  // namespace outrider::model
