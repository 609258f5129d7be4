#pragma once
// What a request must be before it may enter: pure functions of the request, the model and the options.

#include "base/result.h"
#include "sched/admission.h"
#include "serve/executor.h"
#include "serve/options.h"
#include "serve/request.h"
#include "serve/stats.h"

namespace outrider::serve {

// Fills in what depends on the model (caps of tokens), and refuses what cannot be honoured. Code: E_OPTION.
base::Result<EngineOptions> CompleteOptions(EngineOptions options, const ModelShape& shape);

// Tokens of prompt and text together, at most. Codes: E_CONTEXT, E_REQUEST.
base::Result<int64_t> TextMax(const Request& request, const ModelShape& shape, const EngineOptions& options);

// What is admitted and has not ended.
struct Admitted {
  sched::Usage total, tenant;  // tenant: of the one that asks
  // In the inbox, which `stats` do not know yet: requests, tokens of their prompts, of prompts and texts.
  int64_t waiting = 0, waiting_prompt_tokens = 0, waiting_tokens = 0;
};

// Codes: E_BUSY a cap is reached, or the first token would come too late; E_TENANT a cap of the tenant is reached;
// E_CONTEXT it never fits.
tl::expected<void, Rejection> CheckCaps(const Request& request, int64_t text_max, const Admitted& admitted,
                                        const EngineStats& stats, const EngineOptions& options);

}  // namespace outrider::serve
