#include "serve_gpu/gpu_model.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <numeric>
#include <string>

namespace outrider::serve_gpu {
namespace {

using kernels::Signature;

base::Result<void> Check(const spec::Config& config, const serve::ExpertMap& map) {
  if (config.mlp_bias)
    return base::Fail("E_CONFIG", "mlp_bias: found true, expected a model without biases in its FFN");
  const auto fits = [&](const auto& lists) {
    return static_cast<int64_t>(lists.size()) == config.layers && std::ranges::all_of(lists, [&](const auto& list) {
             return static_cast<int64_t>(list.size()) == config.ffn;
           });
  };
  if (map.experts < 0 || map.experts > kernels::kExpertsMax)
    return base::Fail("E_EXPERTS", "found " + std::to_string(map.experts) + " experts, expected up to " +
                                       std::to_string(kernels::kExpertsMax));
  if (map.experts > 0 && (!fits(map.signatures) || (!map.order.empty() && !fits(map.order))))
    return base::Fail("E_EXPERTS", "signatures or order: found other sizes, expected " + std::to_string(config.layers) +
                                       " layers of " + std::to_string(config.ffn) + " channels");
  return {};
}

// Channels of at least one expert, in the order of storing, and their signatures.
struct Live {
  std::vector<int64_t> channels;
  std::vector<Signature> signatures;

  Live(const spec::Config& config, const serve::ExpertMap& map, size_t layer) {
    std::vector<int32_t> order(static_cast<size_t>(config.ffn));
    std::iota(order.begin(), order.end(), 0);
    if (!map.order.empty()) order = map.order[layer];
    for (const int32_t c : order) {
      const Signature signature = map.experts == 0 ? Signature{1} : map.signatures[layer][static_cast<size_t>(c)];
      if (signature == 0) continue;
      channels.push_back(c);
      signatures.push_back(signature);
    }
  }
};

}  // namespace

base::Result<GpuModel> GpuModel::Pack(const spec::Config& config, const serve::ExpertMap& experts,
                                      const model::Parameters& parameters, at::Device device, at::ScalarType dtype) {
  if (auto ok = Check(config, experts); !ok) return tl::unexpected(ok.error());
  const auto here = [&](const at::Tensor& tensor) { return tensor.defined() ? tensor.to(device, dtype) : tensor; };
  GpuModel packed(config, experts.experts > 1 ? experts.experts : 0);
  std::vector<std::vector<Signature>> signatures;
  for (size_t l = 0; l < parameters.layers.size(); ++l) {
    const model::Layer& from = parameters.layers[l];
    Live live(config, experts, l);
    if (live.channels.empty())
      return base::Fail("E_EXPERTS", "layer " + std::to_string(l) + ": found no channel in any expert");
    GpuLayer& to = packed.layers_.emplace_back();
    to.attn_norm = here(from.attn_norm);
    to.qkv = at::cat({here(from.q), here(from.k), here(from.v)}, 0);
    if (from.q_bias.defined()) to.qkv_bias = at::cat({here(from.q_bias), here(from.k_bias), here(from.v_bias)}, 0);
    to.o = here(from.o);
    to.o_bias = here(from.o_bias);
    to.ffn_norm = here(from.ffn_norm);
    const at::Tensor channels = at::tensor(live.channels, at::kLong).to(device);
    to.records = at::stack({here(from.gate).index_select(0, channels), here(from.up).index_select(0, channels),
                            here(from.down).index_select(1, channels).t()},
                           1);
    const std::vector<int64_t> bits(live.signatures.begin(), live.signatures.end());
    to.signatures = at::tensor(bits, at::kLong).to(at::kShort).to(device);  // the upper bit wraps, the bits stay
    signatures.push_back(std::move(live.signatures));
  }
  packed.embed_ = here(parameters.embed);
  packed.norm_ = here(parameters.norm);
  packed.head_ = config.tied ? packed.embed_ : here(parameters.head);
  packed.CountBytes(signatures);
  return packed;
}

void GpuModel::CountBytes(const std::vector<std::vector<Signature>>& signatures) {
  const size_t sets = size_t{1} << std::max<int64_t>(experts_, 1);
  std::vector<int64_t> inside(sets, 0);  // bytes of signatures that are subsets of the index
  for (size_t l = 0; l < layers_.size(); ++l) {
    const GpuLayer& layer = layers_[l];
    for (const at::Tensor* t :
         {&layer.attn_norm, &layer.qkv, &layer.qkv_bias, &layer.o, &layer.o_bias, &layer.ffn_norm})
      if (t->defined()) layer_bytes_ += static_cast<int64_t>(t->nbytes());
    const auto record = static_cast<int64_t>(layer.records.nbytes()) / layer.records.size(0);
    for (const Signature s : signatures[l]) inside[s] += record;
  }
  for (size_t bit = 1; bit < sets; bit <<= 1)
    for (size_t set = 0; set < sets; ++set)
      if ((set & bit) != 0) inside[set] += inside[set ^ bit];
  ffn_bytes_.resize(sets);
  for (size_t set = 0; set < sets; ++set) ffn_bytes_[set] = inside[sets - 1] - inside[sets - 1 - set];
}

int64_t GpuModel::FfnBytes(uint16_t experts) const { return ffn_bytes_[experts & (ffn_bytes_.size() - 1)]; }

}  // namespace outrider::serve_gpu
