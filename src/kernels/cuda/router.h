#pragma once
// The router outside of the backbone in fp32: one causal block over tokens, logits of experts out. A token's bits
// depend on its own text alone: no sum knows how many tokens a call has, nor where a text was cut.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace outrider::kernels::cuda {

constexpr int kRouterPage = 16;         // positions
constexpr int kRouterHeadDimMax = 256;  // of one head
constexpr int kRouterWidthMax = 4096;

// Matrices [rows, width], row major; all in device memory.
struct RouterModel {
  const void* table = nullptr;  // one row for each token of the vocabulary
  bool table_bf16 = false;      // otherwise fp32, as everything else
  // qkv [3 width]: queries, keys and values behind each other; null: no attention.
  const float *attn_norm = nullptr, *qkv = nullptr, *qkv_bias = nullptr, *o = nullptr, *o_bias = nullptr;
  const float *mlp_norm = nullptr, *w1 = nullptr, *w1_bias = nullptr, *w2 = nullptr, *w2_bias = nullptr;
  const float *norm = nullptr, *head = nullptr, *head_bias = nullptr;  // head [experts]
  const float* frequencies = nullptr;                                  // [head_dim / 2], radians per position
  int width = 0, heads = 0, experts = 0;
  float scale = 1, eps = 0;  // of scores; of norms
};

// Tokens behind those that their pages hold. All see each other as far as they are of one text.
struct RouterCall {
  const int32_t *ids = nullptr, *positions = nullptr;  // [tokens]
  const int32_t* texts = nullptr;                      // [tokens]: whose pages, a row of
  const int32_t* pages = nullptr;                      // [texts, table]: page k has positions 16 k to 16 k + 15
  int tokens = 0, table = 0;
  float *keys = nullptr, *values = nullptr;  // [pages, heads, head_dim, 16]; [pages, heads, 16, head_dim]
  float *x = nullptr, *qkv = nullptr,
        *inner = nullptr;   // memory for [tokens, width], [tokens, 3 width], [tokens, width]
  float* logits = nullptr;  // [tokens, experts]
};

// cudaErrorInvalidValue: no token, or a width or heads beyond the limits above.
cudaError_t RunRouter(const RouterModel& model, const RouterCall& call, cudaStream_t stream);

}  // namespace outrider::kernels::cuda
