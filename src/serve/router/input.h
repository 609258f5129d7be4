#pragma once
// What every machine's router does around its block: checks what comes in, chooses experts from what comes out.

#include <span>

#include "base/result.h"
#include "serve/cpu/paged_cache.h"
#include "serve/executor.h"
#include "serve/router/spec.h"

namespace outrider::serve {

// E_EXPERTS: sizes of another model than the backbone's; E_SHAPE a width that twice the heads do not divide, or that a
// tied table of `backbone_width` columns does not have; E_LIMITS no page for the router.
base::Result<void> CheckRouter(const RouterSpec& spec, int64_t backbone_width, const ModelShape& shape);

// Codes: E_EXPERTS an unknown previous expert, and those of PassTokens::Add.
base::Result<PassTokens> TakeRoutes(std::span<const RouteRun> runs, const RouterSpec& spec, const ModelShape& shape);
// E_SHAPE: not one for each token.
base::Result<void> CheckExperts(std::span<const RouteRun> runs, std::span<const ExpertId> experts);
// logits [tokens, experts], the tokens of all runs in order.
void ChooseExperts(std::span<const RouteRun> runs, std::span<const float> logits, const RouterSpec& spec,
                   std::span<ExpertId> experts);

}  // namespace outrider::serve
