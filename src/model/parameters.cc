#include "model/parameters.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/normal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

namespace outrider::model {
namespace {

constexpr double kInitialDeviation = 0.02;

}  // namespace

std::vector<NamedTensor> NamedTensors(const Config& config, Parameters& parameters) {
  std::vector<NamedTensor> all;
  const int64_t d = config.hidden_size, q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  all.push_back({"model.embed_tokens.weight", &parameters.embed, {config.vocab, d}});
  parameters.layers.resize(static_cast<size_t>(config.layers));
  for (int64_t i = 0; i < config.layers; ++i) {
    Layer& layer = parameters.layers[i];
    const std::string place = "model.layers." + std::to_string(i) + ".";
    const auto add = [&](const char* name, at::Tensor& tensor, std::vector<int64_t> shape) {
      all.push_back({place + name, &tensor, std::move(shape)});
    };
    add("input_layernorm.weight", layer.attn_norm, {d});
    add("self_attn.q_proj.weight", layer.q, {q, d});
    add("self_attn.k_proj.weight", layer.k, {kv, d});
    add("self_attn.v_proj.weight", layer.v, {kv, d});
    add("self_attn.o_proj.weight", layer.o, {d, q});
    if (config.qkv_bias) {
      add("self_attn.q_proj.bias", layer.q_bias, {q});
      add("self_attn.k_proj.bias", layer.k_bias, {kv});
      add("self_attn.v_proj.bias", layer.v_bias, {kv});
    }
    if (config.o_bias) add("self_attn.o_proj.bias", layer.o_bias, {d});
    add("post_attention_layernorm.weight", layer.ffn_norm, {d});
    add("mlp.gate_proj.weight", layer.gate, {config.ffn, d});
    add("mlp.up_proj.weight", layer.up, {config.ffn, d});
    add("mlp.down_proj.weight", layer.down, {d, config.ffn});
    if (!config.mlp_bias) continue;
    add("mlp.gate_proj.bias", layer.gate_bias, {config.ffn});
    add("mlp.up_proj.bias", layer.up_bias, {config.ffn});
    add("mlp.down_proj.bias", layer.down_bias, {d});
  }
  all.push_back({"model.norm.weight", &parameters.norm, {d}});
  if (!config.tied) all.push_back({"lm_head.weight", &parameters.head, {config.vocab, d}});
  return all;
}

Parameters RandomParameters(const Config& config, uint64_t seed) {
  Parameters parameters;
  const auto generator = at::detail::createCPUGenerator(seed);
  const auto options = at::TensorOptions().dtype(at::kFloat);
  for (auto& [name, tensor, shape] : NamedTensors(config, parameters)) {
    if (shape.size() == 2) {
      *tensor = at::normal(0.0, kInitialDeviation, shape, generator, options);
    } else {
      *tensor = name.ends_with(".bias") ? at::zeros(shape, options) : at::ones(shape, options);
    }
  }
  if (config.tied) parameters.head = parameters.embed;
  return parameters;
}

}  // namespace outrider::model
