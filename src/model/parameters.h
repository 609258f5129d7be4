#pragma once
// The weights of a dense Llama-family model, by name.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "model/config.h"

namespace outrider::model {

// Matrices have the orientation of Hugging Face files, [out, in]; norms and biases are vectors. Undefined where the
// model has none.
struct Layer {
  at::Tensor attn_norm, q, k, v, o, q_bias, k_bias, v_bias, o_bias;
  at::Tensor ffn_norm, gate, up, down, gate_bias, up_bias, down_bias;
};

struct Parameters {
  at::Tensor embed;  // [V, d]
  std::vector<Layer> layers;
  at::Tensor norm;  // [d]
  at::Tensor head;  // [V, d]; embed itself when tied
};

struct NamedTensor {
  std::string name;  // as in Hugging Face files
  at::Tensor* tensor;
  std::vector<int64_t> shape;
};

// Every tensor that a model of this shape has, in the order of the layers; a tied head is not one. Resizes
// `parameters.layers`; the pointers lead into `parameters`.
std::vector<NamedTensor> NamedTensors(const Config& config, Parameters& parameters);

// Seeded normal weights of standard deviation 0.02, norms 1, biases 0: float32 on the CPU, as transformers initialises.
Parameters RandomParameters(const Config& config, uint64_t seed);

}  // namespace outrider::model
