#include "serve_gpu/gpu_model.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <utility>

#include "serve_gpu/deal.h"

namespace outrider::serve_gpu {

using kernels::Signature;

namespace {

void Deal(serve::LiveChannels& live) {
  serve::LiveChannels dealt;
  for (const int64_t place : DealtOrder(live.signatures)) {
    dealt.channels.push_back(live.channels[static_cast<size_t>(place)]);
    dealt.signatures.push_back(live.signatures[static_cast<size_t>(place)]);
  }
  live = std::move(dealt);
}

// What each expert has, for kernels that walk its channels.
void ListChannels(const std::vector<Signature>& signatures, int64_t experts, at::Device device, GpuLayer& to) {
  std::vector<int64_t> lists, list_at = {0};
  for (int64_t e = 0; e < experts; ++e) {
    for (size_t c = 0; c < signatures.size(); ++c)
      if ((signatures[c] >> e & 1) != 0) lists.push_back(static_cast<int64_t>(c));
    to.active_max = std::max(to.active_max, static_cast<int64_t>(lists.size()) - list_at.back());
    list_at.push_back(static_cast<int64_t>(lists.size()));
  }
  to.lists = at::tensor(lists, at::kLong).to(at::kInt).to(device);
  to.list_at = at::tensor(list_at, at::kLong).to(at::kInt).to(device);
}

}  // namespace

base::Result<GpuModel> GpuModel::Pack(const spec::Config& config, const serve::ExpertMap& experts,
                                      const model::Parameters& parameters, at::Device device, at::ScalarType dtype) {
  if (config.mlp_bias)
    return base::Fail("E_CONFIG", "mlp_bias: found true, expected a model without biases in its FFN");
  if (auto ok = serve::CheckExperts(config, experts); !ok) return tl::unexpected(ok.error());
  const auto here = [&](const at::Tensor& tensor) { return tensor.defined() ? tensor.to(device, dtype) : tensor; };
  GpuModel packed(config, experts.experts > 1 ? experts.experts : 0);
  std::vector<std::vector<Signature>> signatures;
  for (size_t l = 0; l < parameters.layers.size(); ++l) {
    const model::Layer& from = parameters.layers[l];
    auto live = serve::LiveChannelsOf(config, experts, static_cast<int64_t>(l));
    if (!live) return tl::unexpected(live.error());
    Deal(*live);
    GpuLayer& to = packed.layers_.emplace_back();
    to.attn_norm = here(from.attn_norm);
    to.qkv = at::cat({here(from.q), here(from.k), here(from.v)}, 0);
    if (from.q_bias.defined()) to.qkv_bias = at::cat({here(from.q_bias), here(from.k_bias), here(from.v_bias)}, 0);
    to.o = here(from.o);
    to.o_bias = here(from.o_bias);
    to.ffn_norm = here(from.ffn_norm);
    const at::Tensor channels = at::tensor(live->channels, at::kLong).to(device);
    to.records = at::stack({here(from.gate).index_select(0, channels), here(from.up).index_select(0, channels),
                            here(from.down).index_select(1, channels).t()},
                           1);
    const std::vector<int64_t> bits(live->signatures.begin(), live->signatures.end());
    to.signatures = at::tensor(bits, at::kLong).to(at::kShort).to(device);  // the upper bit wraps, the bits stay
    ListChannels(live->signatures, std::max<int64_t>(packed.experts_, 1), device, to);
    signatures.push_back(std::move(live->signatures));
  }
  packed.embed_ = here(parameters.embed);
  packed.norm_ = here(parameters.norm);
  packed.head_ = config.tied ? packed.embed_ : here(parameters.head);
  packed.CountBytes(signatures);
  return packed;
}

void GpuModel::CountBytes(const std::vector<std::vector<Signature>>& signatures) {
  std::vector<int64_t> by_signature(size_t{1} << std::max<int64_t>(experts_, 1), 0);
  for (size_t l = 0; l < layers_.size(); ++l) {
    const GpuLayer& layer = layers_[l];
    for (const at::Tensor* t :
         {&layer.attn_norm, &layer.qkv, &layer.qkv_bias, &layer.o, &layer.o_bias, &layer.ffn_norm})
      if (t->defined()) layer_bytes_ += static_cast<int64_t>(t->nbytes());
    const auto record = static_cast<int64_t>(layer.records.nbytes()) / layer.records.size(0);
    for (const Signature s : signatures[l]) by_signature[s] += record;
  }
  ffn_bytes_ = serve::BytesOfSets(std::move(by_signature));
}

base::Result<void> GpuModel::AddLibraryFfn() {
  if (experts_ > 0) return base::Fail("E_CONFIG", "library: found a model with experts, expected a dense one");
  for (GpuLayer& layer : layers_) {
    layer.gate_up = at::cat({layer.records.select(1, 0), layer.records.select(1, 1)}, 0);
    layer.down = layer.records.select(1, 2).t().contiguous();
  }
  return {};
}

int64_t GpuModel::FfnBytes(uint16_t experts) const { return ffn_bytes_[experts & (ffn_bytes_.size() - 1)]; }

}  // namespace outrider::serve_gpu
