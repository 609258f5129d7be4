#pragma once
// The weights of a router as numbers, before a machine puts them where it wants them.

#include <vector>

#include "base/result.h"
#include "serve/cpu/weights.h"
#include "serve/router/spec.h"

namespace outrider::serve {

// [rows, width] and a number for each row.
struct RouterMatrix {
  std::vector<float> weight, bias;
};

struct RouterWeights {
  std::vector<float> attn_norm, mlp_norm, norm;
  RouterMatrix qkv, o, w1, w2, head;  // qkv: queries, keys and values behind each other; without attention no qkv, no o
  WeightRows table;                   // one row per token, `width` numbers of it count; lives as long as the source
  std::vector<float> frequencies;     // radians per position, of half a head
};

// `source`: the router's tensors under the names of its file; for a tied table also model.embed_tokens.weight
// [vocab, backbone_width], both owned by others. Codes: E_TENSORS, E_SHAPE.
base::Result<RouterWeights> ReadRouter(const RouterSpec& spec, const WeightSource& source, int64_t backbone_width);

}  // namespace outrider::serve
