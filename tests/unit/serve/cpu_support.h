#pragma once
// A tiny random model, its forward pass in double loops, and texts run through the CPU executor in pieces.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "serve/cpu/cpu_executor.h"
#include "serve/cpu/cpu_router.h"

namespace outrider::serve::tests {

// fp32 tensors that a WeightSource points into.
struct Tensors {
  std::map<std::string, std::vector<float>> values;
  WeightSource source;

  void Add(const std::string& name, std::vector<int64_t> shape, std::vector<float> numbers) {
    auto& kept = values[name] = std::move(numbers);
    source[name] = {files::Dtype::kF32, std::move(shape), kept.data()};
  }
  void AddNormal(std::mt19937& random, const std::string& name, std::vector<int64_t> shape, float scale,
                 float mean = 0) {
    std::normal_distribution<float> normal(mean, scale);
    int64_t count = 1;
    for (const int64_t s : shape) count *= s;
    std::vector<float> numbers(static_cast<size_t>(count));
    for (float& v : numbers) v = normal(random);
    Add(name, std::move(shape), std::move(numbers));
  }
  const std::vector<float>& at(const std::string& name) const { return values.at(name); }
};

inline spec::Config TinyConfig() {
  spec::Config c;
  c.model_type = "llama";
  c.hidden_size = 64;
  c.layers = 2;
  c.heads = 6;
  c.kv_heads = 2;
  c.head_dim = 12;
  c.ffn = 90;
  c.vocab = 101;
  c.max_positions = 200;
  c.windows = {0, 0};
  return c;
}

inline Tensors RandomWeights(const spec::Config& c, uint32_t seed) {
  std::mt19937 random(seed);
  Tensors t;
  const int64_t d = c.hidden_size, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  t.AddNormal(random, "model.embed_tokens.weight", {c.vocab, d}, 1);
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string p = "model.layers." + std::to_string(l) + ".";
    t.AddNormal(random, p + "input_layernorm.weight", {d}, 0.2F, 1);
    t.AddNormal(random, p + "post_attention_layernorm.weight", {d}, 0.2F, 1);
    const auto matrix = [&](const std::string& name, int64_t rows, int64_t columns, bool bias) {
      t.AddNormal(random, p + name + ".weight", {rows, columns}, 1.2F / std::sqrt(static_cast<float>(columns)));
      if (bias) t.AddNormal(random, p + name + ".bias", {rows}, 0.3F);
    };
    matrix("self_attn.q_proj", q, d, c.qkv_bias);
    matrix("self_attn.k_proj", kv, d, c.qkv_bias);
    matrix("self_attn.v_proj", kv, d, c.qkv_bias);
    matrix("self_attn.o_proj", d, q, c.o_bias);
    matrix("mlp.gate_proj", c.ffn, d, false);
    matrix("mlp.up_proj", c.ffn, d, false);
    matrix("mlp.down_proj", d, c.ffn, false);
  }
  t.AddNormal(random, "model.norm.weight", {d}, 0.2F, 1);
  if (!c.tied) t.AddNormal(random, "lm_head.weight", {c.vocab, d}, 0.3F);
  return t;
}

inline ExpertMap RandomExperts(const spec::Config& c, int64_t experts, uint32_t seed) {
  std::mt19937 random(seed);
  ExpertMap map{.experts = experts, .signatures = {}, .order = {}};
  std::uniform_int_distribution<int> signature(0, (1 << experts) - 1);
  for (int64_t l = 0; l < c.layers; ++l) {
    auto& layer = map.signatures.emplace_back();
    for (int64_t f = 0; f < c.ffn; ++f) layer.push_back(static_cast<kernels::Signature>(signature(random)));
    auto& order = map.order.emplace_back(static_cast<size_t>(c.ffn));
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, {}, [&](int32_t f) { return layer[static_cast<size_t>(f)]; });
  }
  return map;
}

using Row = std::vector<double>;

inline Row Normed(const Row& x, const std::vector<float>& weight, double eps) {
  double squares = 0;
  for (const double v : x) squares += v * v;
  Row y;
  for (size_t i = 0; i < x.size(); ++i)
    y.push_back(weight[i] * x[i] / std::sqrt(squares / static_cast<double>(x.size()) + eps));
  return y;
}

inline Row Times(const Tensors& t, const std::string& name, const Row& x) {
  const std::vector<float>& w = t.at(name + ".weight");
  const auto bias = t.values.find(name + ".bias");
  Row y(w.size() / x.size(), 0);
  for (size_t r = 0; r < y.size(); ++r) {
    for (size_t k = 0; k < x.size(); ++k) y[r] += w[r * x.size() + k] * x[k];
    if (bias != t.values.end()) y[r] += bias->second[r];
  }
  return y;
}

inline void Turn(double* head, int64_t dim, int64_t position, double base) {
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double angle =
        static_cast<double>(position) * std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
    const double a = head[i], b = head[dim / 2 + i];
    head[i] = a * std::cos(angle) - b * std::sin(angle);
    head[dim / 2 + i] = b * std::cos(angle) + a * std::sin(angle);
  }
}

// Causal attention of all tokens: q, k, v [tokens][heads * dim], q with `group` heads for each of k.
inline std::vector<Row> Mixed(std::vector<Row> q, std::vector<Row> k, const std::vector<Row>& v, int64_t dim,
                              int64_t group, int64_t window, double base, double scale) {
  std::vector<Row> out;
  for (size_t t = 0; t < q.size(); ++t) {
    for (size_t h = 0; h < q[t].size(); h += static_cast<size_t>(dim))
      Turn(&q[t][h], dim, static_cast<int64_t>(t), base);
    for (size_t h = 0; h < k[t].size(); h += static_cast<size_t>(dim))
      Turn(&k[t][h], dim, static_cast<int64_t>(t), base);
    Row& mixed = out.emplace_back(q[t].size(), 0);
    const size_t first = window > 0 && t + 1 > static_cast<size_t>(window) ? t + 1 - static_cast<size_t>(window) : 0;
    for (size_t h = 0; h < q[t].size() / static_cast<size_t>(dim); ++h) {
      const size_t at = h * static_cast<size_t>(dim), kv = h / static_cast<size_t>(group) * static_cast<size_t>(dim);
      double total = 0;
      for (size_t p = first; p <= t; ++p) {
        double dot = 0;
        for (size_t d = 0; d < static_cast<size_t>(dim); ++d) dot += q[t][at + d] * k[p][kv + d];
        const double e = std::exp(dot * scale);
        total += e;
        for (size_t d = 0; d < static_cast<size_t>(dim); ++d) mixed[at + d] += e * v[p][kv + d];
      }
      for (size_t d = 0; d < static_cast<size_t>(dim); ++d) mixed[at + d] /= total;
    }
  }
  return out;
}

inline double Silu(double x) { return x / (1 + std::exp(-x)); }

// Logits of every token of a text.
inline std::vector<Row> ReferenceLogits(const spec::Config& c, const ExpertMap& map, const Tensors& t,
                                        const std::vector<int32_t>& ids, const std::vector<ExpertId>& experts) {
  std::vector<Row> x;
  const std::vector<float>& embed = t.at("model.embed_tokens.weight");
  for (const int32_t id : ids)
    x.emplace_back(embed.begin() + id * c.hidden_size, embed.begin() + (id + 1) * c.hidden_size);
  const auto add = [](Row& to, const Row& from) { std::ranges::transform(to, from, to.begin(), std::plus<>()); };
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string p = "model.layers." + std::to_string(l) + ".", attn = p + "self_attn.", mlp = p + "mlp.";
    std::vector<Row> q, k, v;
    for (const Row& row : x) {
      const Row normed = Normed(row, t.at(p + "input_layernorm.weight"), c.rms_eps);
      q.push_back(Times(t, attn + "q_proj", normed));
      k.push_back(Times(t, attn + "k_proj", normed));
      v.push_back(Times(t, attn + "v_proj", normed));
    }
    const auto mixed = Mixed(q, k, v, c.head_dim, c.KvGroup(), c.windows[static_cast<size_t>(l)], c.rope_theta,
                             1 / std::sqrt(static_cast<double>(c.head_dim)));
    for (size_t i = 0; i < x.size(); ++i) {
      add(x[i], Times(t, attn + "o_proj", mixed[i]));
      const Row normed = Normed(x[i], t.at(p + "post_attention_layernorm.weight"), c.rms_eps);
      Row h = Times(t, mlp + "gate_proj", normed);
      const Row up = Times(t, mlp + "up_proj", normed);
      for (size_t f = 0; f < h.size(); ++f) {
        const bool has = map.experts == 0 || (map.signatures[static_cast<size_t>(l)][f] >> experts[i] & 1U) != 0;
        h[f] = has ? Silu(h[f]) * up[f] : 0;
      }
      add(x[i], Times(t, mlp + "down_proj", h));
    }
  }
  std::vector<Row> logits;
  for (const Row& row : x)
    logits.push_back(
        Times(t, c.tied ? "model.embed_tokens" : "lm_head", Normed(row, t.at("model.norm.weight"), c.rms_eps)));
  return logits;
}

struct Text {
  std::vector<int32_t> ids;
  std::vector<ExpertId> experts;  // empty: dense
  std::vector<int32_t> pages;
};

inline Text RandomText(int64_t vocab, int64_t experts, int64_t tokens, int32_t first_page, uint32_t seed) {
  std::mt19937 random(seed);
  Text text;
  for (int64_t i = 0; i < tokens; ++i) {
    text.ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)));
    if (experts > 0) text.experts.push_back(static_cast<ExpertId>(random() % static_cast<uint32_t>(experts)));
  }
  for (int32_t p = 0; p < (tokens + 15) / 16; ++p) text.pages.push_back(first_page + p);
  return text;
}

// A piece of a text, logits of every token.
inline TokenRun Piece(const Text& text, int64_t first, int64_t count) {
  const auto at = static_cast<size_t>(first), size = static_cast<size_t>(count);
  const std::span<const ExpertId> experts(text.experts);
  return {.ids = std::span(text.ids).subspan(at, size),
          .experts = experts.empty() ? experts : experts.subspan(at, size),
          .position = first,
          .kv_pages = text.pages,
          .logits_from = 0};
}

inline std::unique_ptr<CpuExecutor> MakeExecutor(const spec::Config& c, const ExpertMap& map, const Tensors& t,
                                                 kernels::Number number, int threads) {
  auto model = CpuModel::Pack(c, map, t.source, number);
  return CpuExecutor::Make(*std::move(model), {.kv_pages = 40, .route_pages = 40, .step_tokens_max = 128},
                           std::make_shared<kernels::Workers>(threads))
      .value();
}

struct Form {
  const char* name;
  spec::Config config;
  int64_t experts;
};

inline std::vector<Form> Forms() {
  std::vector<Form> forms;
  spec::Config llama = TinyConfig(), qwen = TinyConfig(), mistral = TinyConfig();
  llama.tied = true;
  llama.o_bias = llama.qkv_bias = true;
  qwen.qkv_bias = true;
  qwen.windows = {0, 21};
  mistral.windows = {9, 9};
  mistral.heads = mistral.kv_heads = 4;
  forms.push_back({"dense llama", llama, 0});
  forms.push_back({"routed qwen", qwen, 5});
  forms.push_back({"routed mistral", mistral, 3});
  return forms;
}

inline std::vector<float> RunWhole(Executor& executor, const Text& text) {
  std::vector<float> logits(text.ids.size() * static_cast<size_t>(executor.shape().vocab));
  const TokenRun run = Piece(text, 0, static_cast<int64_t>(text.ids.size()));
  const auto cost = executor.Run({&run, 1}, logits);
  EXPECT_TRUE(cost) << cost.error().message;
  return logits;
}

}  // namespace outrider::serve::tests
