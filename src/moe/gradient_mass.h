#pragma once
// How much each channel matters to the loss, to first order: |h_c * dL/dh_c|.

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "moe/routed_model.h"

namespace outrider::moe {

class ProbingHook;

// Where gradients arrive: per layer a leaf of zeros, most often added to h. Kept, so that co-executed
// steps meet the same tensors again; each is one zero, repeated. At most one set per number of tokens.
class GradientProbes {
 public:
  // Per layer [tokens, width], without a gradient.
  const std::vector<at::Tensor>& Take(int64_t layers, std::array<int64_t, 2> shape, const at::TensorOptions& options);
  // Those taken last for so many tokens, with what has arrived since.
  const std::vector<at::Tensor>& Of(int64_t tokens) const { return sets_.at(tokens); }

 private:
  std::map<int64_t, std::vector<at::Tensor>> sets_;  // by tokens
};

// |h * gradient| of one layer, [T, D] fp32, from h and what has arrived in its probe, which is empty afterwards.
at::Tensor TakeMass(const at::Tensor& h, const at::Tensor& probe);

// Per layer [B * S, D] fp32 on the device, L the cross-entropy of all next tokens of the batch under the unmasked
// model. A token's values sum to the number of layers, over all layers and channels: layers that matter more have more.
// weights: the model's compute copy. Memory: layers * B * S * D * (4 bytes and two of the compute dtype).
std::vector<at::Tensor> GradientMass(const RoutedModel& model, const model::Parameters& weights,
                                     const TokenBatch& batch, int64_t chunk, GradientProbes& probes);

// Masks [N, D] of one layer, then a row of ones, then rows of zeros up to a multiple of 8, which tensor cores want.
at::Tensor WithTotal(const at::Tensor& masks);

// |h * gradient| times rows: [T, R] fp32. Both [T, D], rows [R, D], all in one dtype, which is that of the product;
// sums are fp32. One tensor [T, D] more for as long as it takes, and on a CPU one in fp32 where the dtype is another.
at::Tensor KeptOf(const at::Tensor& h, const at::Tensor& gradient, const at::Tensor& rows);

// What of each token's mass the experts keep, found in the passes that tune them: |h * gradient| of every layer, of
// what goes into down_proj, times the masks. In one of two forms with the same bits, as model.mask_form says. Lean:
// each layer's part is made where its gradient passes by, and nothing but [T, R] is kept. By operators: h and gradients
// of all layers are kept until the end.
class KeptMass {
 public:
  // Both stay the caller's. `model` needs expert ids for every token.
  KeptMass(const RoutedModel& model, const RoutedModel::Masking& masking);
  ~KeptMass();
  KeptMass(const KeptMass&) = delete;
  KeptMass& operator=(const KeptMass&) = delete;

  // Makes what passes of so many tokens need. Called before a co-executed step, which then finds what the next finds.
  void Prepare(int64_t tokens);
  // What masks the next pass, of ids.size(0) tokens. Valid until the call of Sums behind its backward pass.
  model::FfnHook& Hook(const at::Tensor& ids);
  // Sums over the layers: [T, N] kept by each expert, then [T, 1] in all.
  std::pair<at::Tensor, at::Tensor> Sums();

 private:
  const RoutedModel& model_;
  const RoutedModel::Masking& masking_;
  std::vector<at::Tensor> rows_;  // per layer
  GradientProbes probes_;
  int64_t tokens_ = 0;
  std::unique_ptr<model::FfnHook> masked_;
  std::unique_ptr<ProbingHook> probing_;
};

}  // namespace outrider::moe
