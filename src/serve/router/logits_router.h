#pragma once
// What every machine's router does around its block: checks what comes in, chooses experts from its logits.

#include <span>
#include <vector>

#include "base/result.h"
#include "serve/cpu/paged_cache.h"
#include "serve/executor.h"
#include "serve/router/spec.h"

namespace outrider::serve {

// E_EXPERTS: sizes of another model than the backbone's; E_SHAPE a width that twice the heads do not divide, or that a
// tied table of `backbone_width` columns does not have; E_LIMITS no page for the router.
base::Result<void> CheckRouter(const RouterSpec& spec, int64_t backbone_width, const ModelShape& shape);

class LogitsRouter : public Pregate {
 public:
  LogitsRouter(const RouterSpec& spec, const ModelShape& shape) : spec_(spec), shape_(shape) {}

  // Codes: E_SHAPE not one expert for each token, and those of Logits.
  base::Result<void> Route(std::span<const RouteRun> runs, std::span<ExpertId> experts) final;
  // Logits [tokens, experts] of tokens behind those in the pages. Codes: those of Take, and E_DEVICE.
  virtual base::Result<void> Logits(std::span<const RouteRun> runs, std::span<float> logits) = 0;

 protected:
  // The tokens of all runs in order. Codes: E_SHAPE other than `logits` numbers come out, E_EXPERTS an unknown previous
  // expert, and those of PassTokens::Add.
  base::Result<PassTokens> Take(std::span<const RouteRun> runs, size_t logits) const;

  const RouterSpec spec_;
  const ModelShape shape_;

 private:
  std::vector<float> logits_;
};

}  // namespace outrider::serve
