#pragma once
// The router outside of the backbone on the processor, in fp32 whatever the format of the backbone. Experts are chosen
// token by token; a window or a document as the unit of choice would need the logits of its tokens gathered before the
// first of them is answered, which this interface does not offer, and artifacts do not ask for it.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/matrix.h"
#include "kernels/scratch.h"
#include "kernels/workers.h"
#include "serve/cpu/paged_cache.h"
#include "serve/executor.h"
#include "serve/router/logits_router.h"
#include "serve/router/weights.h"

namespace outrider::serve {

class CpuRouter : public LogitsRouter {
 public:
  // Codes: those of CheckRouter and ReadRouter. Throws std::bad_alloc.
  static base::Result<std::unique_ptr<CpuRouter>> Make(const RouterSpec& spec, const WeightSource& source,
                                                       int64_t backbone_width, const ModelShape& shape,
                                                       std::shared_ptr<kernels::Workers> workers);

  base::Result<void> Logits(std::span<const RouteRun> runs, std::span<float> logits) override;

  int64_t WeightBytes() const;  // read by every call, rows of the table apart

 private:
  // Packed as the processor walks them.
  struct Packed {
    kernels::Matrix qkv, o, w1, w2, head, table;
    std::vector<float> attn_norm, mlp_norm, norm;
  };

  CpuRouter(const RouterSpec& spec, Packed weights, std::vector<float> frequencies, const ModelShape& shape,
            std::shared_ptr<kernels::Workers> workers);
  static Packed Pack(const RouterSpec& spec, const RouterWeights& weights);
  void Block(int64_t first, int64_t count, float* logits);

  Packed weights_;
  std::shared_ptr<kernels::Workers> workers_;
  std::vector<PagedCache> cache_;  // one, or none without attention
  RotaryTable rotary_;
  kernels::Scratch scratch_;

  // Of the call that runs.
  PassTokens tokens_;
  std::vector<float> x_, normed_, qkv_, inner_;
};

}  // namespace outrider::serve
