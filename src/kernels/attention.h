#pragma once
// Keys and values of one layer in pages, as attention reads them. A page holds kPageTokens positions; for each head
//
//   keys   [head_dim][kPageTokens] fp32, so that one vector holds one coordinate of many positions
//   values [kPageTokens][head_dim rounded up to kPageTokens] fp32, padding unread

#include <cstdint>

#include "kernels/engine.h"

namespace outrider::kernels {

struct KvShape {
  int64_t heads = 0;     // of keys and values
  int64_t group = 0;     // heads of the queries for each of them
  int64_t head_dim = 0;  // even

  int64_t PaddedDim() const { return (head_dim + kPageTokens - 1) / kPageTokens * kPageTokens; }
  int64_t HeadFloats() const { return (head_dim + PaddedDim()) * kPageTokens; }
  int64_t PageFloats() const { return heads * HeadFloats(); }
};

// Writes key and value [heads, head_dim] of one position into its page.
void StoreKeyValue(const KvShape& shape, float* page, int64_t position, const float* key, const float* value);

// Memory that TokenEngine::attend needs for texts of up to `context` tokens, in floats.
inline int64_t ScoreFloats(const KvShape& shape, int64_t context) { return shape.group * (context + 2 * kPageTokens); }

}  // namespace outrider::kernels
