#include "model/llama.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>

#include <optional>
#include <tuple>

#include "base/check.h"
#include "model/rotary.h"

namespace outrider::model {
namespace {

std::optional<at::Tensor> Bias(const at::Tensor& bias) {
  return bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
}

at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::linear(x, weight, Bias(bias));
}

// On a CPU with the bits of transformers; on a GPU one kernel, with one rounding less.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (x.is_cuda()) return at::rms_norm(x, {x.size(-1)}, weight, eps);
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = wide.pow(2).mean(-1, /*keepdim=*/true).add(eps).rsqrt();
  return weight * (wide * scale).to(x.scalar_type());
}

// Cosine and sine for S positions from `first` on, [S, head_dim] in the dtype of the activations.
struct Rotation {
  at::Tensor cos, sin;

  Rotation(const Config& config, int64_t first, int64_t count, const at::Tensor& like) {
    const at::Tensor positions =
        at::arange(first, first + count, at::TensorOptions().dtype(at::kFloat).device(like.device()));
    const at::Tensor half = positions.unsqueeze(1) * InverseFrequencies(config, like.device()).unsqueeze(0);
    const at::Tensor angles = at::cat({half, half}, 1);
    cos = angles.cos().to(like.scalar_type());
    sin = angles.sin().to(like.scalar_type());
  }

  // x: [B, heads, S, head_dim]; the halves of a head are the coordinates of its planes.
  at::Tensor Apply(const at::Tensor& x) const {
    const int64_t half = x.size(-1) / 2;
    const at::Tensor turned = at::cat({-x.slice(-1, half), x.slice(-1, 0, half)}, -1);
    return x * cos + turned * sin;
  }
};

// Which keys each of `count` queries behind `past` tokens sees: bool [count, past + count]. Nothing where plain
// causality, or no mask at all, says the same.
std::optional<at::Tensor> Mask(int64_t past, int64_t count, int64_t window, at::Device device) {
  const bool cut = window > 0 && past + count > window;
  if (!cut && (past == 0 || count == 1)) return std::nullopt;
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor distance =
      at::arange(past, past + count, options).unsqueeze(1) - at::arange(past + count, options).unsqueeze(0);
  const at::Tensor causal = distance >= 0;
  return cut ? causal & (distance < window) : causal;
}

at::Tensor RepeatHeads(const at::Tensor& x, int64_t times) {
  if (times == 1) return x;
  const auto sizes = x.sizes();
  return x.unsqueeze(2)
      .expand({sizes[0], sizes[1], times, sizes[2], sizes[3]})
      .reshape({sizes[0], -1, sizes[2], sizes[3]});
}

// One forward pass; reads as its own summary in Run.
class Pass {
 public:
  Pass(const Config& config, const Parameters& parameters, const at::Tensor& ids, KvCache* cache, FfnHook* hook)
      : config_(config), parameters_(parameters), ids_(ids), cache_(cache), hook_(hook) {}

  at::Tensor Run() {
    CheckInputs();
    if (hook_ != nullptr) hook_->OnTokens(ids_, past_);
    at::Tensor x = at::embedding(parameters_.embed, ids_);
    rotation_.emplace(config_, past_, ids_.size(1), x);
    for (int64_t layer = 0; layer < config_.layers; ++layer) {
      const Layer& weights = parameters_.layers[layer];
      x = x + Attention(layer, RmsNorm(x, weights.attn_norm, config_.rms_eps));
      x = x + Ffn(layer, RmsNorm(x, weights.ffn_norm, config_.rms_eps));
    }
    if (cache_ != nullptr) cache_->Advance(ids_.size(1));
    return RmsNorm(x, parameters_.norm, config_.rms_eps);
  }

 private:
  void CheckInputs() {
    OUTRIDER_CHECK(ids_.dim() == 2 && ids_.scalar_type() == at::kLong && ids_.size(1) > 0,
                   "ids must be int64 [B, S] with S > 0");
    OUTRIDER_CHECK(static_cast<int64_t>(parameters_.layers.size()) == config_.layers, "layers and config differ");
    past_ = cache_ == nullptr ? 0 : cache_->Length();
    OUTRIDER_CHECK(past_ + ids_.size(1) <= config_.max_positions, "found ", past_ + ids_.size(1),
                   " tokens, expected at most max_positions = ", config_.max_positions);
  }

  at::Tensor Heads(const at::Tensor& x, int64_t count) const {
    return x.view({x.size(0), x.size(1), count, config_.head_dim}).transpose(1, 2);
  }

  at::Tensor Attention(int64_t layer, const at::Tensor& x) {
    const Layer& weights = parameters_.layers[layer];
    const at::Tensor q = rotation_->Apply(Heads(Linear(x, weights.q, weights.q_bias), config_.heads));
    at::Tensor k = rotation_->Apply(Heads(Linear(x, weights.k, weights.k_bias), config_.kv_heads));
    at::Tensor v = Heads(Linear(x, weights.v, weights.v_bias), config_.kv_heads);
    if (cache_ != nullptr) std::tie(k, v) = cache_->Append(layer, k, v);
    const auto mask = Mask(past_, x.size(1), config_.windows[layer], x.device());
    const bool causal = !mask && x.size(1) > 1;
    const at::Tensor mixed = at::scaled_dot_product_attention(
        q, RepeatHeads(k, config_.KvGroup()), RepeatHeads(v, config_.KvGroup()), mask, /*dropout_p=*/0.0, causal);
    return Linear(mixed.transpose(1, 2).reshape({x.size(0), x.size(1), -1}), weights.o, weights.o_bias);
  }

  at::Tensor Ffn(int64_t layer, const at::Tensor& x) {
    const Layer& weights = parameters_.layers[layer];
    const at::Tensor tokens = x.reshape({-1, config_.hidden_size});
    if (hook_ != nullptr) hook_->OnInput(layer, tokens);
    const at::Tensor gate = at::silu(Linear(tokens, weights.gate, weights.gate_bias));
    const at::Tensor up = Linear(tokens, weights.up, weights.up_bias);
    const at::Tensor h = hook_ != nullptr ? hook_->OnFactors(layer, gate, up) : gate * up;
    return Linear(h, weights.down, weights.down_bias).view(x.sizes());
  }

  const Config& config_;
  const Parameters& parameters_;
  const at::Tensor& ids_;
  KvCache* cache_;
  FfnHook* hook_;
  int64_t past_ = 0;
  std::optional<Rotation> rotation_;
};

}  // namespace

at::Tensor FfnHook::OnFactors(int64_t layer, const at::Tensor& gate, const at::Tensor& up) {
  return OnHidden(layer, gate * up);
}

at::Tensor HiddenStates(const Config& config, const Parameters& parameters, const at::Tensor& ids, FfnHook* hook) {
  return Pass(config, parameters, ids, nullptr, hook).Run();
}

at::Tensor HiddenStates(const Config& config, const Parameters& parameters, const at::Tensor& ids, KvCache& cache,
                        FfnHook* hook) {
  return Pass(config, parameters, ids, &cache, hook).Run();
}

at::Tensor Logits(const Config& config, const Parameters& parameters, const at::Tensor& hidden) {
  OUTRIDER_CHECK(hidden.size(-1) == config.hidden_size, "hidden states of ", hidden.size(-1), " columns");
  return at::linear(hidden, parameters.head);
}

}  // namespace outrider::model
