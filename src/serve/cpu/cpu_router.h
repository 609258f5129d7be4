#pragma once
// The router outside of the backbone on the processor, in fp32 whatever the format of the backbone: one causal block
// over tokens, one expert per token out (docs/formats/artifact.md). Experts are chosen token by token; a window or a
// document as the unit of choice would need the logits of its tokens gathered before the first of them is answered,
// which this interface does not offer, and artifacts do not ask for it.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/matrix.h"
#include "kernels/scratch.h"
#include "kernels/workers.h"
#include "serve/cpu/paged_cache.h"
#include "serve/cpu/weights.h"
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
};

class CpuRouter : public Pregate {
 public:
  // `source`: the router's tensors under the names of its file; for a tied table also model.embed_tokens.weight
  // [vocab, backbone_width]. Codes: E_TENSORS, E_SHAPE, E_LIMITS, E_EXPERTS. Throws std::bad_alloc.
  static base::Result<std::unique_ptr<CpuRouter>> Make(const RouterSpec& spec, const WeightSource& source,
                                                       int64_t backbone_width, const ModelShape& shape,
                                                       std::shared_ptr<kernels::Workers> workers);

  // Codes: E_SHAPE, E_EXPERTS an unknown previous expert, and those of PassTokens::Add.
  base::Result<void> Route(std::span<const RouteRun> runs, std::span<ExpertId> experts) override;
  // Logits [tokens, experts] of tokens behind those in the pages, for tests and measurements.
  base::Result<void> Logits(std::span<const RouteRun> runs, std::span<float> logits);

  int64_t WeightBytes() const;  // read by every call, rows of the table apart

 private:
  struct Weights {
    kernels::Matrix qkv, o, w1, w2, head;
    std::vector<float> attn_norm, mlp_norm, norm;
    kernels::Matrix table;  // one row per token
  };

  CpuRouter(const RouterSpec& spec, Weights weights, const ModelShape& shape,
            std::shared_ptr<kernels::Workers> workers);
  static base::Result<Weights> Read(const RouterSpec& spec, const WeightSource& source, int64_t backbone_width);
  base::Result<void> Take(std::span<const RouteRun> runs);
  void Block(int64_t first, int64_t count, float* logits);

  RouterSpec spec_;
  Weights weights_;
  ModelShape shape_;
  std::shared_ptr<kernels::Workers> workers_;
  std::vector<PagedCache> cache_;  // one, or none without attention
  RotaryTable rotary_;
  kernels::Scratch scratch_;

  // Of the call that runs.
  PassTokens tokens_;
  std::vector<float> x_, normed_, qkv_, inner_;
  std::vector<float> logits_;
};

// The expert of a token from its logits: the highest, ties to the lowest index; with tau > 0 `previous` stays until
// another one leads it by at least tau.
ExpertId ChooseExpert(std::span<const float> logits, double tau, ExpertId previous);

}  // namespace outrider::serve
