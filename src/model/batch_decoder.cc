#include "model/batch_decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "base/check.h"
#include "model/rotary.h"

namespace outrider::model {
namespace {

std::optional<at::Tensor> Optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

at::Tensor Stacked(std::initializer_list<at::Tensor> parts) {
  return parts.begin()->defined() ? at::cat(at::TensorList(parts.begin(), parts.size()), 0) : at::Tensor();
}

// x += y weight^T + bias, without a tensor in between.
void AddLinear(at::Tensor& x, const at::Tensor& y, const at::Tensor& weight, const at::Tensor& bias) {
  x.addmm_(y, weight.t());
  if (bias.defined()) x.add_(bias);
}

}  // namespace

BatchDecoder::BatchDecoder(const Config& config, const Parameters& parameters, int64_t texts, int64_t slots)
    : config_(config), embed_(parameters.embed), norm_(parameters.norm), head_(parameters.head) {
  const at::NoGradGuard no_grad;
  const std::vector<int64_t> shape = {texts, 2 * config.kv_heads, slots, config.head_dim};
  for (const Layer& l : parameters.layers) {
    // Zeros: what nobody sees is multiplied by 0, and must be a number.
    layers_.push_back({l.attn_norm, Stacked({l.q, l.k, l.v}), Stacked({l.q_bias, l.k_bias, l.v_bias}), l.o, l.o_bias,
                       l.ffn_norm, Stacked({l.gate, l.up}), Stacked({l.gate_bias, l.up_bias}), l.down, l.down_bias,
                       at::zeros(shape, embed_.options())});
  }
  const int64_t positions = std::min(config.max_positions, slots);
  const at::Tensor angles =
      at::arange(positions, at::TensorOptions().dtype(at::kFloat).device(embed_.device())).unsqueeze(1) *
      InverseFrequencies(config, embed_.device()).unsqueeze(0);
  const at::Tensor cos = angles.cos(), sin = angles.sin();
  cos_table_ = at::cat({cos, cos}, 1).to(embed_.scalar_type());
  sin_table_ = at::cat({-sin, sin}, 1).to(embed_.scalar_type());
}

at::Tensor BatchDecoder::Norm(const at::Tensor& x, const at::Tensor& weight) const {
  return at::rms_norm(x, {config_.hidden_size}, weight, config_.rms_eps);
}

at::Tensor BatchDecoder::Attention(FusedLayer& layer, const at::Tensor& x, int64_t slot, const at::Tensor& seen,
                                   int64_t used) {
  const int64_t batch = x.size(0), heads = config_.heads, kv = config_.kv_heads, size = config_.head_dim;
  const at::Tensor plain = at::linear(x, layer.qkv, Optional(layer.qkv_bias)).view({batch, heads + 2 * kv, size});
  const at::Tensor qkv = (plain * cos_).addcmul_(plain.roll(size / 2, -1), sin_);
  layer.cache.select(2, slot).copy_(qkv.slice(1, heads));
  // The query heads of a group are queries of one attention over the keys that they share.
  const at::Tensor q = qkv.slice(1, 0, heads).reshape({batch, kv, config_.KvGroup(), size});
  const at::Tensor keys = layer.cache.slice(1, 0, kv).slice(2, 0, used);
  const at::Tensor values = layer.cache.slice(1, kv).slice(2, 0, used);
  const at::Tensor mask = seen.slice(1, 0, used).view({batch, 1, 1, used}).expand({batch, kv, config_.KvGroup(), used});
  return at::scaled_dot_product_attention(q, keys, values, mask).reshape({batch, heads * size});
}

at::Tensor BatchDecoder::Step(const at::Tensor& ids, const at::Tensor& positions, int64_t slot, const at::Tensor& seen,
                              int64_t used) {
  const at::NoGradGuard no_grad;
  const int64_t batch = ids.size(0), turned = config_.heads + config_.kv_heads, size = config_.head_dim;
  const at::Tensor still = at::ones({batch, config_.kv_heads, size}, embed_.options());
  cos_ = at::cat({cos_table_.index_select(0, positions).unsqueeze(1).expand({batch, turned, size}), still}, 1);
  sin_ = at::cat({sin_table_.index_select(0, positions).unsqueeze(1).expand({batch, turned, size}), still * 0}, 1);
  at::Tensor x = at::embedding(embed_, ids);
  for (FusedLayer& layer : layers_) {
    AddLinear(x, Attention(layer, Norm(x, layer.attn_norm), slot, seen, used), layer.o, layer.o_bias);
    const at::Tensor both = at::linear(Norm(x, layer.ffn_norm), layer.gate_up, Optional(layer.gate_up_bias));
    const at::Tensor h = at::silu(both.slice(1, 0, config_.ffn)).mul_(both.slice(1, config_.ffn));
    AddLinear(x, h, layer.down, layer.down_bias);
  }
  return at::linear(Norm(x, norm_), head_);
}

}  // namespace outrider::model
