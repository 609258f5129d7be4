#pragma once
// A refactored model as files: the parent's architecture with channels in stored order, and beside it what turns it
// into a Mixture-of-Experts. Without that, the weights alone compute another function: all channels are on.

#include <algorithm>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <nlohmann/json.hpp>

#include "base/result.h"
#include "model/checkpoint.h"
#include "moe/block_table.h"
#include "moe/options.h"
#include "moe/routed_model.h"
#include "moe/tensor_file.h"

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

inline std::string Manifest(const RoutedModel& model, const Options& options, const std::vector<std::string>& domains) {
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
  return root.dump(1) + "\n";
}

// Appears under `folder`, which must not exist, complete or not at all. A model without experts is written as it is.
// Codes: E_WRITE; E_OPTION: masks with a compensating bias, for which the parent's architecture has no place, or a
// router per layer.
inline base::Result<void> ExportModel(const std::string& folder, const RoutedModel& model, const Options& options,
                                      const std::vector<std::string>& domains) {
  const at::NoGradGuard no_grad;
  std::error_code error;
  if (!model.gains.empty()) return base::Fail("E_OPTION", folder + ": experts with gains cannot be written yet");
  if (!model.fill.empty() || model.contextual > 0 || model.layer_router) {
    return base::Fail("E_OPTION",
                      folder + ": expected experts with one router or one mask without a compensating bias");
  }
  if (std::filesystem::exists(folder, error)) return base::Fail("E_WRITE", folder + ": exists");
  const std::string partial = folder + ".partial";
  std::filesystem::remove_all(partial, error);
  if (!std::filesystem::create_directories(partial, error)) {
    return base::Fail("E_WRITE", partial + ": create: " + error.message());
  }
  std::vector<LayerLayout> layouts;
  for (int64_t l = 0; l < model.masks.layers(); ++l) layouts.push_back(LayOut(model.masks, l, 1));
  const bool narrow = options.dtype == "bfloat16";
  auto done = model::SaveParameters(partial, model.config, InStoredOrder(model.Copy(at::kFloat), layouts),
                                    {.dtype = narrow ? at::kBFloat16 : at::kFloat});
  if (done && model.Masked())
    done = SaveTensors(partial + "/outrider_masks.safetensors", MaskTensors(model.masks, layouts), {});
  if (done && model.router)
    done = SaveTensors(partial + "/outrider_router.safetensors", model.router->Parameters(), {});
  std::vector<std::pair<const char*, std::string>> texts = {
      {"/config.json", model::ToJson(model.config, options.dtype)}};
  if (model.Masked()) texts.emplace_back("/outrider.json", Manifest(model, options, domains));
  for (const auto& [name, text] : texts) {
    if (!done) return done;
    auto file = files::AtomicFile::Create(partial + name);
    if (!file) return tl::unexpected(file.error());
    done = file->Write(text);
    if (done) done = file->Commit();
  }
  if (!done) return done;
  std::filesystem::rename(partial, folder, error);
  if (error) return base::Fail("E_WRITE", folder + ": rename: " + error.message());
  return {};
}

}  // namespace outrider::moe
