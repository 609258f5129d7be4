#include "moe/router.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "base/check.h"
#include "moe/uniform.h"

namespace outrider::moe {
namespace {

constexpr double kNormEps = 1e-6;

struct Slot {
  const char* name;
  std::vector<int64_t> shape;
  bool ones = false;  // norms
};

std::vector<Slot> Slots(const RouterShape& s) {
  const int64_t w = s.width;
  std::vector<Slot> slots;
  if (s.embedding == RouterEmbedding::kOwn) slots.push_back({"embed.weight", {s.vocab, w}});
  if (s.attention) {
    slots.push_back({"block.attn_norm.weight", {w}, true});
    slots.insert(slots.end(), {{"block.q.weight", {w, w}},
                               {"block.q.bias", {w}},
                               {"block.k.weight", {w, w}},
                               {"block.k.bias", {w}},
                               {"block.v.weight", {w, w}},
                               {"block.v.bias", {w}},
                               {"block.o.weight", {w, w}},
                               {"block.o.bias", {w}}});
  }
  slots.insert(slots.end(), {{"block.mlp_norm.weight", {w}, true},
                             {"block.w1.weight", {w, w}},
                             {"block.w1.bias", {w}},
                             {"block.w2.weight", {w, w}},
                             {"block.w2.bias", {w}},
                             {"norm.weight", {w}, true},
                             {"head.weight", {s.experts, w}},
                             {"head.bias", {s.experts}}});
  return slots;
}

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight) {
  return x * at::rsqrt(x.square().mean(-1, true) + kNormEps) * weight;
}

// Rotates pairs (i, i + head_dim / 2) of x [B, H, S, head_dim]; the first token has position `begin`.
at::Tensor Rotate(const at::Tensor& x, int64_t begin, double base) {
  const int64_t half = x.size(-1) / 2;
  const auto options = x.options();
  const at::Tensor frequency = at::pow(base, at::arange(half, options) * (-1.0 / static_cast<double>(half)));
  const at::Tensor angle = at::arange(begin, begin + x.size(2), options).unsqueeze(1) * frequency;
  const at::Tensor cos = angle.cos(), sin = angle.sin();
  const at::Tensor a = x.slice(-1, 0, half), b = x.slice(-1, half);
  return at::cat({a * cos - b * sin, b * cos + a * sin}, -1);
}

std::string Shape(at::IntArrayRef sizes) {
  std::string text = "[";
  for (const int64_t s : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(s);
  return text + "]";
}

}  // namespace

int64_t ParameterCount(const RouterShape& shape) {
  int64_t count = 0;
  for (const Slot& slot : Slots(shape)) {
    int64_t numel = 1;
    for (const int64_t s : slot.shape) numel *= s;
    count += numel;
  }
  return count;
}

base::Result<Router> Router::Make(const RouterShape& shape, uint64_t seed, const at::Tensor& backbone) {
  const int64_t hidden = backbone.size(1);
  if (shape.width % (2 * shape.heads) != 0) {
    return base::Fail("E_OPTION", "router.width: found " + std::to_string(shape.width) + ", expected a multiple of " +
                                      std::to_string(2 * shape.heads));
  }
  if (backbone.size(0) != shape.vocab || (shape.embedding == RouterEmbedding::kTied && shape.width > hidden)) {
    return base::Fail("E_OPTION", "router: found an embedding table of shape " + Shape(backbone.sizes()) +
                                      ", expected " + std::to_string(shape.vocab) + " rows and, tied, at least " +
                                      std::to_string(shape.width) + " columns");
  }
  Router router(shape);
  uint32_t number = 0;
  for (const Slot& slot : Slots(shape)) {
    const bool matrix = slot.shape.size() == 2;
    at::Tensor value = slot.ones ? at::ones(slot.shape) : at::zeros(slot.shape);
    if (matrix)
      value =
          UniformTensor(slot.shape, 1 / std::sqrt(static_cast<double>(slot.shape[1])), seed, Use::kRouterInit, number);
    value = value.to(backbone.device());
    if (std::string_view(slot.name) == "embed.weight") {
      const int64_t columns = std::min(shape.width, hidden);
      value.slice(1, 0, columns).copy_(backbone.detach().slice(1, 0, columns));
    }
    router.parameters_.push_back({slot.name, value});
    ++number;
  }
  return router;
}

base::Result<Router> Router::Load(const RouterShape& shape, const NamedTensors& tensors) {
  Router router(shape);
  for (const Slot& slot : Slots(shape)) {
    const auto found = std::ranges::find(tensors, slot.name, &NamedTensor::name);
    if (found == tensors.end()) return base::Fail("E_ROUTER", std::string(slot.name) + ": missing");
    if (found->tensor.sizes() != at::IntArrayRef(slot.shape)) {
      return base::Fail("E_ROUTER", std::string(slot.name) + ": found shape " + Shape(found->tensor.sizes()) +
                                        ", expected " + Shape(slot.shape));
    }
    router.parameters_.push_back({slot.name, found->tensor.to(at::kFloat)});
  }
  if (tensors.size() != router.parameters_.size()) {
    return base::Fail("E_ROUTER", "found " + std::to_string(tensors.size()) + " tensors, expected " +
                                      std::to_string(router.parameters_.size()));
  }
  return router;
}

const at::Tensor& Router::Get(const char* name) const {
  const auto found = std::ranges::find(parameters_, name, &NamedTensor::name);
  OUTRIDER_CHECK(found != parameters_.end(), "the router has no ", name);
  return found->tensor;
}

at::Tensor Router::Project(const at::Tensor& x, const char* weight, const char* bias) const {
  return at::linear(x, Get(weight), Get(bias));
}

at::Tensor Router::Attention(const at::Tensor& x, RouterCache* cache) const {
  const int64_t batch = x.size(0), count = x.size(1), head_dim = shape_.width / shape_.heads;
  const int64_t past = cache != nullptr ? cache->tokens : 0;
  const auto heads = [&](const at::Tensor& y) {
    return y.view({batch, count, shape_.heads, head_dim}).transpose(1, 2);
  };
  const at::Tensor q = Rotate(heads(Project(x, "block.q.weight", "block.q.bias")), past, shape_.rope_base);
  at::Tensor k = Rotate(heads(Project(x, "block.k.weight", "block.k.bias")), past, shape_.rope_base);
  at::Tensor v = heads(Project(x, "block.v.weight", "block.v.bias"));
  if (past > 0) {
    k = at::cat({cache->keys, k}, 2);
    v = at::cat({cache->values, v}, 2);
  }
  if (cache != nullptr) {
    cache->keys = k.detach();
    cache->values = v.detach();
    cache->tokens += count;
  }
  const double scale = shape_.scale == AttentionScale::kNone ? 1 : 1 / std::sqrt(static_cast<double>(head_dim));
  std::optional<at::Tensor> seen;  // [count, past + count]
  if (past > 0) seen = at::ones({count, past + count}, x.options().dtype(at::kBool)).tril(past);
  const at::Tensor out = at::scaled_dot_product_attention(q, k, v, seen, 0.0, !seen.has_value(), scale);
  return Project(out.transpose(1, 2).reshape({batch, count, shape_.width}), "block.o.weight", "block.o.bias");
}

at::Tensor Router::Logits(const at::Tensor& ids, const at::Tensor& backbone, RouterCache* cache) const {
  OUTRIDER_CHECK(ids.dim() == 2 && ids.scalar_type() == at::kLong, "ids must be int64 [B, S]");
  at::Tensor x;
  if (shape_.embedding == RouterEmbedding::kOwn) {
    x = at::embedding(Get("embed.weight"), ids);
  } else {
    x = at::embedding(backbone.detach().slice(1, 0, shape_.width), ids).to(at::kFloat);
  }
  if (shape_.attention) x = x + Attention(RmsNorm(x, Get("block.attn_norm.weight")), cache);
  const at::Tensor inner = Project(RmsNorm(x, Get("block.mlp_norm.weight")), "block.w1.weight", "block.w1.bias");
  x = x + Project(at::silu(inner), "block.w2.weight", "block.w2.bias");
  return Project(RmsNorm(x, Get("norm.weight")), "head.weight", "head.bias");
}

}  // namespace outrider::moe
