#pragma once
// A refactored model as files: the parent's architecture with channels in stored order, and beside it what turns it
// into a Mixture-of-Experts. Without that, the weights alone compute another function: all channels are on.

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <nlohmann/json.hpp>

#include "base/result.h"
#include "model/checkpoint.h"
#include "moe/adapter_file.h"
#include "moe/block_table.h"
#include "moe/options.h"
#include "moe/routed_model.h"
#include "moe/tensor_file.h"
#include "moe/whole_folder.h"

namespace outrider::moe {

// Signatures [L, D] as integers of `dtype`: kByte for at most 8 experts, else kUInt16; kShort inside checkpoints.
inline at::Tensor SignatureTensor(const Masks& masks, at::ScalarType dtype) {
  const at::Tensor out = at::zeros({masks.layers(), masks.channels()}, at::kShort);
  int16_t* to = out.mutable_data_ptr<int16_t>();
  for (int64_t l = 0; l < masks.layers(); ++l) {
    for (const Signature s : masks.Layer(l)) *to++ = static_cast<int16_t>(s);
  }
  return out.to(dtype);
}

// The inverse, from kShort.
inline Masks MasksFrom(const at::Tensor& signatures, int64_t experts) {
  Masks masks(experts, signatures.size(0), signatures.size(1));
  const int16_t* from = signatures.const_data_ptr<int16_t>();
  for (int64_t l = 0; l < masks.layers(); ++l, from += masks.channels()) {
    const std::vector<Signature> row(from, from + masks.channels());
    masks.SetLayer(l, row);
  }
  return masks;
}

// Moves the channels of each layer into stored order. The function stays the same up to the order of sums in down_proj.
inline model::Parameters InStoredOrder(const model::Parameters& parameters, std::span<const LayerLayout> layouts) {
  model::Parameters out = parameters;
  for (size_t l = 0; l < layouts.size(); ++l) {
    model::Layer& layer = out.layers[l];
    const std::vector<int32_t>& order = layouts[l].permutation;
    const at::Tensor index = at::from_blob(const_cast<int32_t*>(order.data()), {static_cast<int64_t>(order.size())},
                                           at::TensorOptions().dtype(at::kInt))
                                 .to(layer.down.device(), at::kLong);
    for (at::Tensor* rows : {&layer.gate, &layer.up, &layer.gate_bias, &layer.up_bias}) {
      if (rows->defined()) *rows = rows->index_select(0, index);
    }
    layer.down = layer.down.index_select(1, index);
  }
  return out;
}

// sig [L, D], perm int32 [L, D], blocks int32 [L, G, 4] = signature, offset, channels, pages; layers with fewer blocks
// are filled with 0.
inline NamedTensors MaskTensors(const Masks& masks, std::span<const LayerLayout> layouts) {
  size_t most = 0;
  for (const LayerLayout& layout : layouts) most = std::max(most, layout.blocks.size());
  const at::Tensor perm = at::zeros({masks.layers(), masks.channels()}, at::kInt);
  const at::Tensor blocks = at::zeros({masks.layers(), static_cast<int64_t>(most), 4}, at::kInt);
  for (size_t l = 0; l < layouts.size(); ++l) {
    const auto row = static_cast<int64_t>(l);
    std::ranges::copy(layouts[l].permutation, perm[row].mutable_data_ptr<int32_t>());
    int32_t* to = blocks[row].mutable_data_ptr<int32_t>();
    for (const Block& b : layouts[l].blocks) {
      for (const int64_t value : {int64_t{b.signature}, b.offset, b.channels, b.pages})
        *to++ = static_cast<int32_t>(value);
    }
  }
  const at::ScalarType dtype = masks.experts() <= 8 ? at::kByte : at::kUInt16;
  return {{"sig", SignatureTensor(Permuted(masks, layouts), dtype)}, {"perm", perm}, {"blocks", blocks}};
}

// outrider.json.
inline nlohmann::json Manifest(const RoutedModel& model, const Options& options,
                               const std::vector<std::string>& domains) {
  nlohmann::json root = {{"version", 1},
                         {"experts", model.masks.experts()},
                         {"experts_kind", options.experts_kind},
                         {"domains", domains},
                         {"page_channels", 1},
                         {"routing", options.routing_kind},
                         {"router_loss", options.router_loss},
                         {"tau", model.tau},
                         {"seed", options.seed}};
  for (int64_t l = 0; l < model.masks.layers(); ++l) root["active"].push_back(model.masks.Count(l).active);
  if (options.experts_kind == "published") root["names"] = domains;
  if (model.router) {
    root["router"] = {{"width", options.router_width},         {"heads", options.router_heads},
                      {"scale", options.router_scale},         {"embed", options.router_embedding},
                      {"attention", options.router_attention}, {"rope_base", model.router->shape().rope_base}};
  }
  return root;
}

// Weights, config, masks and router of one model; `manifest` is null for one without experts.
inline base::Result<void> WriteModel(const std::string& folder, const RoutedModel& model, bool narrow,
                                     const nlohmann::json& manifest) {
  const at::NoGradGuard no_grad;
  return WriteFolder(folder, [&](const std::string& partial) -> base::Result<void> {
    std::vector<LayerLayout> layouts;
    for (int64_t l = 0; l < model.masks.layers(); ++l) layouts.push_back(LayOut(model.masks, l, 1));
    auto done = model::SaveParameters(partial, model.config, InStoredOrder(model.Copy(at::kFloat), layouts),
                                      {.dtype = narrow ? at::kBFloat16 : at::kFloat});
    if (done && model.Masked())
      done = SaveTensors(partial + "/outrider_masks.safetensors", MaskTensors(model.masks, layouts), {});
    if (done && model.router)
      done = SaveTensors(partial + "/outrider_router.safetensors", model.router->Parameters(), {});
    if (done) done = WriteText(partial + "/config.json", model::ToJson(model.config, narrow ? "bfloat16" : "float32"));
    if (done && !manifest.is_null()) done = WriteText(partial + "/outrider.json", manifest.dump(1) + "\n");
    return done;
  });
}

// What has a place beside the parent's architecture.
inline base::Result<void> CheckExport(const std::string& folder, const RoutedModel& model) {
  if (model.fill.empty() && model.contextual == 0 && !model.layer_router) return {};
  return base::Fail("E_OPTION", folder + ": expected experts with one router or one mask without a compensating bias");
}

// Appears under `folder`, which must not exist, complete or not at all. A model without experts is written as it is.
// Codes: E_WRITE; E_OPTION: masks with a compensating bias, for which the parent's architecture has no place, or a
// router per layer.
inline base::Result<void> ExportModel(const std::string& folder, const RoutedModel& model, const Options& options,
                                      const std::vector<std::string>& domains) {
  if (auto ok = CheckExport(folder, model); !ok) return ok;
  return WriteModel(folder, model, options.dtype == "bfloat16",
                    model.Masked() ? Manifest(model, options, domains) : nlohmann::json());
}

// Adapter, masks in the parent's order and router: all that is not the parent. `base_sha256`: model::WeightsSha256 of
// the parent. Codes as ExportModel; E_OPTION without an adapter or experts.
inline base::Result<void> ExportAdapter(const std::string& folder, const RoutedModel& model, const Options& options,
                                        const std::vector<std::string>& domains, const std::string& base_sha256) {
  if (auto ok = CheckExport(folder, model); !ok) return ok;
  if (!model.adapter || !model.Masked()) return base::Fail("E_OPTION", folder + ": expected an adapter and experts");
  const AdapterHeader header{.rank = AdapterRank(options), .dtype = options.adapter_dtype, .base_sha256 = base_sha256};
  nlohmann::json manifest = Manifest(model, options, domains);
  manifest["adapter"] = {{"rank", header.rank}, {"dtype", header.dtype}};
  manifest["base_sha256"] = base_sha256;
  return WriteFolder(folder, [&](const std::string& partial) -> base::Result<void> {
    const at::ScalarType dtype = model.masks.experts() <= 8 ? at::kByte : at::kUInt16;
    auto done =
        SaveTensors(partial + "/outrider_masks.safetensors", {{"sig", SignatureTensor(model.masks, dtype)}}, {});
    if (done && model.router)
      done = SaveTensors(partial + "/outrider_router.safetensors", model.router->Parameters(), {});
    if (done) done = SaveAdapter(partial + "/outrider_adapter.safetensors", *model.adapter, header);
    if (done) done = WriteText(partial + "/outrider.json", manifest.dump(1) + "\n");
    return done;
  });
}

}  // namespace outrider::moe
