#pragma once
// A refactored model from its files (docs/formats/artifact.md), alone or beside its parent.

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "base/result.h"
#include "model/llama.h"
#include "moe/routed_model.h"

namespace outrider::moe {

// `folder` with weights of its own, or with an adapter, or masks and router only, for the weights of the model folder
// `parent` (empty: none). Weights in `dtype`; masks in the order of the weights. Codes: those of the model reader;
// E_ARTIFACT a file that is missing, damaged, or no part of such a folder; E_MASKS, E_ROUTER and E_ADAPTER tensors that
// do not fit the model; E_MODEL a parent that is missing, not needed, or another one than the adapter was tuned beside.
base::Result<RoutedModel> OpenArtifact(const std::string& folder, const std::string& parent, at::ScalarType dtype,
                                       at::Device device);

// The same model as a folder with weights of its own, adapter merged, in bfloat16 or float32; the new folder `out`
// appears complete or not at all. Codes as OpenArtifact; E_WRITE.
base::Result<void> MergeArtifact(const std::string& folder, const std::string& parent, const std::string& out,
                                 bool narrow);

// Runs each token's expert while texts are written or read: ids are decided from tokens alone, in front of layer 0.
// Texts that go on behind a cache of the model are remembered.
class RoutedHook : public model::FfnHook {
 public:
  // `model` and `masking` outlive the hook.
  RoutedHook(const RoutedModel& model, const RoutedModel::Masking& masking) : model_(model), masking_(masking) {}
  void OnTokens(const at::Tensor& ids, int64_t past) override;
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override;
  // Experts of the tokens of the last pass, int64 [B * S]; undefined with one mask for all.
  const at::Tensor& Ids() const { return ids_; }

 private:
  const RoutedModel& model_;
  const RoutedModel::Masking& masking_;
  RouterCache cache_;
  int64_t tokens_ = 0;
  std::vector<int64_t> previous_;  // per text
  at::Tensor ids_;
};

}  // namespace outrider::moe
