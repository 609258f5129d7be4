#include "moe/routed_model.h"

#include <algorithm>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "moe/ffn_hooks.h"
#include "moe/layerwise.h"
#include "moe/losses.h"
#include "moe/philox.h"
#include "moe/routes.h"

namespace outrider::moe {

TokenBatch MakeBatch(const TokenData& data, const std::string& split, std::span<const Place> places, int64_t sequence,
                     uint64_t key, at::Device device) {
  const at::Tensor tokens = at::empty({static_cast<int64_t>(places.size()), sequence + 1}, at::kLong);
  int64_t* out = tokens.mutable_data_ptr<int64_t>();
  for (const Place& place : places) out = std::ranges::copy(data.Read(place, split, sequence + 1), out).out;
  const at::Tensor moved = tokens.to(device);
  // Each with memory of its own, also where there is one text: co-execution waits for what others may read.
  return {moved.slice(1, 0, sequence).clone(at::MemoryFormat::Contiguous),
          moved.slice(1, 1).clone(at::MemoryFormat::Contiguous),
          {places.begin(), places.end()},
          key};
}

NamedTensors RoutedModel::Named() const {
  model::Parameters view = masters;
  NamedTensors named;
  for (const model::NamedTensor& t : model::NamedTensors(config, view)) named.push_back({t.name, *t.tensor});
  return named;
}

model::Parameters RoutedModel::Copy(at::ScalarType type) const {
  if (adapter) return adapter->Apply(config, masters, type);
  model::Parameters copy = masters;
  for (const model::NamedTensor& t : model::NamedTensors(config, copy)) *t.tensor = t.tensor->to(type);
  if (config.tied) copy.head = copy.embed;
  return copy;
}

RoutedModel::Masking RoutedModel::Prepare() const {
  Masking out;
  for (int64_t l = 0; l < masks.layers(); ++l) out.masks.push_back(MaskMatrix(masks, l, dtype, device()));
  for (const at::Tensor& row : fill) out.fill.push_back(row.to(device(), dtype));
  return out;
}

std::unique_ptr<model::FfnHook> RoutedModel::Hook(const Masking& masking, const at::Tensor& ids,
                                                  std::vector<at::Tensor>* chosen) const {
  if (layer_router) return std::make_unique<LayerRoutingHook>(*layer_router, masking.masks, chosen, mask_form);
  if (Masked()) return std::make_unique<MaskingHook>(masking.masks, masking.fill, ids, mask_form);
  if (contextual == 0) return nullptr;
  std::vector<at::Tensor> down;
  for (const model::Layer& layer : masters.layers) down.push_back(layer.down.detach());
  return std::make_unique<ContextualHook>(std::move(down), contextual);
}

at::Tensor RoutedModel::RouterLogits(const at::Tensor& inputs, RouterCache* cache) const {
  if (router->shape().embedding == RouterEmbedding::kOwn) return router->Logits(inputs, masters.embed, cache);
  return router->Logits(inputs, masters.embed.detach().slice(1, 0, router->shape().width).to(dtype), cache);
}

namespace {

at::Tensor WithHysteresis(const at::Tensor& logits, double tau) {
  const at::Tensor host = logits.to(at::kCPU).contiguous();
  const auto experts = static_cast<size_t>(host.size(2)), row = static_cast<size_t>(host.size(1)) * experts;
  const std::span<const float> all(host.const_data_ptr<float>(), static_cast<size_t>(host.numel()));
  std::vector<int64_t> ids;
  for (size_t begin = 0; begin < all.size(); begin += row) {
    const std::vector<int64_t> text = Route(all.subspan(begin, row), static_cast<int64_t>(experts), tau);
    ids.insert(ids.end(), text.begin(), text.end());
  }
  return at::tensor(ids, at::kLong).to(logits.device());
}

}  // namespace

at::Tensor RoutedModel::ExpertIds(const TokenBatch& batch) const {
  const at::NoGradGuard no_grad;
  if (routing == Routing::kNone || routing == Routing::kLayerwise) return {};
  if (routing == Routing::kRouter) {
    const at::Tensor logits = RouterLogits(batch.inputs);
    return tau > 0 ? WithHysteresis(logits, tau) : logits.argmax(-1).flatten();
  }
  std::vector<int64_t> ids;
  const int64_t sequence = batch.inputs.size(1);
  for (size_t b = 0; b < batch.places.size(); ++b) {
    for (int64_t t = 0; t < sequence; ++t) {
      const uint64_t bits = Random64(batch.key, Use::kRandomIds, 0, static_cast<uint32_t>(b), static_cast<uint32_t>(t));
      const auto uniform = static_cast<int64_t>(Below(bits, static_cast<uint64_t>(masks.experts())));
      ids.push_back(routing == Routing::kDomain ? batch.places[b].domain : uniform);
    }
  }
  return at::tensor(ids, at::kLong).to(device());
}

}  // namespace outrider::moe
