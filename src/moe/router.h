#pragma once
// The router outside the backbone (Read-ME, arXiv 2410.19123): token ids in, one expert per token out, the same for all
// layers. One causal block; the logits at position t have seen tokens 0 to t.

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "base/result.h"
#include "moe/named_tensor.h"

namespace outrider::moe {

enum class AttentionScale : uint8_t {
  kNone,  // published: logits are not divided by sqrt(head_dim)
  kSqrt,
};

enum class RouterEmbedding : uint8_t {
  kOwn,   // published: a table of its own, started from the first `width` columns of the backbone's
  kTied,  // ours: reads the first `width` columns of the backbone's table in place and stores nothing
};

struct RouterShape {
  int64_t vocab = 0;
  int64_t experts = 0;
  int64_t width = 512;
  int64_t heads = 4;
  AttentionScale scale = AttentionScale::kNone;
  RouterEmbedding embedding = RouterEmbedding::kOwn;
  bool attention = true;  // off: each token is routed by itself
  double rope_base = 10000;
};

// Stored parameters; 17,965,063 for 7 experts, vocabulary 32000, width 512, own table.
int64_t ParameterCount(const RouterShape& shape);

// Keys [B, heads, T, head_dim] after rotation and values of the T tokens seen so far.
struct RouterCache {
  at::Tensor keys, values;
  int64_t tokens = 0;
};

class Router {
 public:
  // Weights uniform in +-1/sqrt(fan_in), biases 0, norms 1, by seed; the own table starts from `backbone` [V, d],
  // columns beyond d from the seed. Error E_OPTION when the shape does not fit the backbone. All in fp32 on backbone's
  // device.
  static base::Result<Router> Make(const RouterShape& shape, uint64_t seed, const at::Tensor& backbone);
  // From stored tensors, names as in Parameters(). Code E_ROUTER: missing, extra or of another shape.
  static base::Result<Router> Load(const RouterShape& shape, const NamedTensors& tensors);

  const RouterShape& shape() const { return shape_; }
  // embed.weight (own only), block.attn_norm.weight, block.{q,k,v,o}.{weight,bias}, block.mlp_norm.weight,
  // block.{w1,w2}.{weight,bias}, norm.weight, head.{weight,bias}. The tensors themselves, not copies.
  const NamedTensors& Parameters() const { return parameters_; }

  // ids [B, S] int64 -> [B, S, N] fp32, differentiable. backbone [V, d]: read by a tied router only, gets no gradient.
  // With a cache the ids follow those that the cache has seen, and are added to it.
  at::Tensor Logits(const at::Tensor& ids, const at::Tensor& backbone, RouterCache* cache = nullptr) const;

 private:
  explicit Router(const RouterShape& shape) : shape_(shape) {}
  const at::Tensor& Get(const char* name) const;
  at::Tensor Project(const at::Tensor& x, const char* weight, const char* bias) const;
  at::Tensor Attention(const at::Tensor& x, RouterCache* cache) const;

  RouterShape shape_;
  NamedTensors parameters_;
};

}  // namespace outrider::moe
