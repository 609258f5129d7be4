#pragma once
// What a request must be before it may enter: pure functions of the request, the model and the options.

#include "base/result.h"
#include "serve/executor.h"
#include "serve/options.h"
#include "serve/request.h"

namespace outrider::serve {

// Fills in what depends on the model (caps of tokens), and refuses what cannot be honoured. Code: E_OPTION.
base::Result<EngineOptions> CompleteOptions(EngineOptions options, const ModelShape& shape);

// Tokens of prompt and text together, at most. Codes: E_CONTEXT, E_REQUEST.
base::Result<int64_t> TextMax(const Request& request, const ModelShape& shape, const EngineOptions& options);

}  // namespace outrider::serve
