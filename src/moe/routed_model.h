#pragma once
// A dense model, its experts and its router: one set of weights, many masks.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/llama.h"
#include "moe/adapter.h"
#include "moe/layer_router.h"
#include "moe/masks.h"
#include "moe/named_tensor.h"
#include "moe/router.h"
#include "moe/token_data.h"

namespace outrider::moe {

enum class Routing : uint8_t {
  kNone,       // one mask or none
  kRouter,     // Read-ME: token ids alone decide
  kLayerwise,  // baseline: every layer decides from its own input
  kRandom,     // baseline: uniform, by seed and place
  kDomain,     // baseline: the domain that the text is from
};

// Texts of equal length, and where they are from.
struct TokenBatch {
  at::Tensor inputs, targets;  // [B, S] int64: tokens, and each one's successor
  std::vector<Place> places;
  uint64_t key = 0;  // of random ids
  int64_t Tokens() const { return inputs.numel(); }
};

// `sequence` + 1 tokens from each place.
TokenBatch MakeBatch(const TokenData& data, const std::string& split, std::span<const Place> places, int64_t sequence,
                     uint64_t key, at::Device device);

struct RoutedModel {
  model::Config config;
  model::Parameters masters;  // fp32; with an adapter frozen, in `dtype`
  std::optional<Adapter> adapter;
  at::ScalarType dtype = at::kFloat;  // of the compute copy
  Masks masks;                        // no expert at all: dense
  std::vector<at::Tensor> fill;       // empty, or per layer [D] fp32 (Compensation)
  Routing routing = Routing::kNone;
  std::optional<Router> router;
  std::optional<LayerRouter> layer_router;  // baseline, instead of `router`
  MaskForm mask_form = MaskForm::kLean;
  double tau = 0;
  int64_t contextual = 0;  // baseline: channels that each token chooses by itself; 0: off

  bool Masked() const { return masks.experts() > 0; }
  at::Device device() const { return masters.embed.device(); }
  // Every master, once, under its name in model files.
  NamedTensors Named() const;
  // What a stage of the experts changes: the pairs of the adapter, else every master.
  NamedTensors Tuned() const { return adapter ? adapter->Named() : Named(); }
  // The weights in `type`, adapter included; gradients of the copy reach what is tuned. The masters themselves when
  // they have that dtype.
  model::Parameters Copy(at::ScalarType type) const;
  model::Parameters ComputeCopy() const { return Copy(dtype); }
  // What a forward pass needs of masks and fill, in `dtype` on the device; made once.
  struct Masking {
    std::vector<at::Tensor> masks, fill;
  };
  Masking Prepare() const;
  // What masks the FFNs for the tokens of `batch`, expert ids [B * S] (undefined: one mask, or a router per layer);
  // nullptr: nothing does. chosen: see LayerRoutingHook. `masking` must outlive the hook.
  std::unique_ptr<model::FfnHook> Hook(const Masking& masking, const at::Tensor& ids,
                                       std::vector<at::Tensor>* chosen = nullptr) const;
  // [B, S] -> [B, S, N]. A tied router reads the table as the compute copy has it.
  at::Tensor RouterLogits(const at::Tensor& inputs, RouterCache* cache = nullptr) const;
  // Expert of every token, [B * S] int64 on the device; undefined without routing, and with a router per layer.
  at::Tensor ExpertIds(const TokenBatch& batch) const;
};

}  // namespace outrider::moe
