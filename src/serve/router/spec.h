#pragma once
// The router outside of the backbone (docs/formats/artifact.md): one causal block over tokens, one expert per token
// out.

#include <cstdint>
#include <span>

#include "serve/executor.h"

namespace outrider::serve {

enum class ScoreScale : uint8_t { kNone, kSqrt };        // scores as they are, or divided by sqrt(head size)
enum class RouterTable : uint8_t { kOwn, kTied };        // tied: the first columns of the backbone's embedding
enum class RouterContext : uint8_t { kCausal, kToken };  // attention over the text so far, or none

struct RouterSpec {
  int64_t vocab = 0;
  int64_t experts = 0;
  int64_t width = 512;
  int64_t heads = 4;
  ScoreScale scale = ScoreScale::kNone;
  RouterTable table = RouterTable::kOwn;
  RouterContext context = RouterContext::kCausal;
  double rope_base = 10'000;
  double tau = 0;  // nats that another expert must lead by before the expert changes

  int64_t head_dim() const { return width / heads; }
  float score_scale() const;
};

constexpr float kRouterNormEps = 1e-6F;

// The expert of a token from its logits: the highest, ties to the lowest index; with tau > 0 `previous` stays until
// another one leads it by at least tau.
ExpertId ChooseExpert(std::span<const float> logits, double tau, ExpertId previous);

}  // namespace outrider::serve
