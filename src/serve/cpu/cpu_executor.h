#pragma once
// Passes over planned tokens on the processor. One thread calls; the workers belong to the caller, who may share them
// between objects that this thread calls.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/scratch.h"
#include "kernels/workers.h"
#include "serve/cpu/cpu_model.h"
#include "serve/cpu/paged_cache.h"
#include "serve/cpu/pass_input.h"
#include "serve/executor.h"

namespace outrider::serve {

class CpuExecutor : public Executor {
 public:
  // E_LIMITS: no page, no token in a step, or a context that the model does not have. Throws std::bad_alloc.
  static base::Result<std::unique_ptr<CpuExecutor>> Make(CpuModel model, const PassLimits& limits,
                                                         std::shared_ptr<kernels::Workers> workers);

  const ModelShape& shape() const override { return shape_; }
  int64_t FfnBytes(uint16_t experts) const override { return model_.FfnBytes(experts); }
  // Layers without experts, and the head. A pass that wants no logits does not read the head, and one that wants only
  // the likeliest ids reads a smaller copy and little of the head itself (head_screen.h).
  int64_t FixedBytes() const override { return model_.LayerBytes() + model_.HeadBytes(); }
  // Codes: E_SHAPE wrong sizes, E_EXPERTS, and those of PassTokens::Add. No page is touched then.
  base::Result<RunCost> Run(std::span<const TokenRun> runs, std::span<float> logits) override;
  base::Result<RunCost> RunGreedy(std::span<const TokenRun> runs, std::span<int64_t> best) override;

 private:
  CpuExecutor(CpuModel model, const ModelShape& shape, std::shared_ptr<kernels::Workers> workers);
  void Embed();
  void Attention(const CpuLayer& layer, size_t index);
  void ChooseExperts(const CpuLayer& layer);
  void OrderForFfn();
  void Ffn(const CpuLayer& layer);
  void Layers();
  void NormWanted();
  void Head(std::span<float> logits);
  int64_t HeadOfLikeliest(std::span<int64_t> best);
  void Norm(const float* from, const float* weight, int64_t rows, float* to);
  RunCost Cost(int64_t head_bytes, int64_t start_ns) const;

  CpuModel model_;
  ModelShape shape_;
  std::shared_ptr<kernels::Workers> workers_;
  std::vector<PagedCache> caches_;  // per layer
  RotaryTable rotary_;
  kernels::Scratch scratch_;

  // Of the pass that runs.
  PassInput input_;
  std::vector<int64_t> ffn_order_;               // tokens as the FFN takes them
  std::vector<uint8_t> ffn_experts_;             // in that order
  std::vector<float> chosen_;                    // logits of a layer's router
  int64_t chosen_bytes_ = 0;                     // of FFNs, of the experts that the layers chose
  std::vector<float> x_, normed_, qkv_, mixed_;  // [step_tokens_max, ...]
  ScreenMemory screen_memory_;                   // of likeliest ids
};

// Radians per position of each pair of a head, fp32.
std::vector<float> RotaryFrequencies(const spec::Config& config);

}  // namespace outrider::serve
