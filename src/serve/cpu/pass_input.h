#pragma once
// The tokens of a pass as an executor takes them: everything that can fail, before anything is written.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "serve/cpu/paged_cache.h"
#include "serve/executor.h"
#include "spec/config.h"

namespace outrider::serve {

struct PassLimits {
  int64_t context = 0;          // tokens; 0: what the model allows
  int64_t kv_pages = 0;         // of the backbone's cache
  int64_t route_pages = 0;      // of the router's cache
  int64_t step_tokens_max = 0;  // of one Run
};

// E_LIMITS: no page, no token in a step, or a context that the model does not have.
base::Result<ModelShape> ShapeOf(const spec::Config& config, int64_t experts, const PassLimits& limits);

struct PassInput {
  PassTokens tokens;
  std::vector<uint8_t> experts;  // per token; 0 of a dense model
  std::vector<int64_t> wanted;   // tokens whose logits are wanted, ascending

  // Codes: E_SHAPE wrong sizes, E_EXPERTS, and those of PassTokens::Add.
  base::Result<void> Take(std::span<const TokenRun> runs, const ModelShape& shape);
  // E_SHAPE: `numbers` are not the wanted rows of `columns`.
  base::Result<void> CheckRows(size_t numbers, int64_t columns) const;
};

}  // namespace outrider::serve
