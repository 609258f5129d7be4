#include "kernels/attention.h"

#include <algorithm>

namespace outrider::kernels {

void StoreKeyValue(const KvShape& shape, float* page, int64_t position, const float* key, const float* value) {
  const int64_t lane = position % kPageTokens, dim = shape.head_dim;
  for (int64_t h = 0; h < shape.heads; ++h) {
    float* keys = page + h * shape.HeadFloats();
    for (int64_t d = 0; d < dim; ++d) keys[d * kPageTokens + lane] = key[h * dim + d];
    float* values = keys + dim * kPageTokens + lane * shape.PaddedDim();
    std::copy(value + h * dim, value + (h + 1) * dim, values);
  }
}

}  // namespace outrider::kernels
