#pragma once
// Low-rank corrections of the linear weights of a frozen model (LoRA, Hu et al., arXiv 2106.09685).

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/parameters.h"
#include "moe/named_tensor.h"

namespace outrider::moe {

// The effective weight is W + b a.
struct AdapterPair {
  std::string weight;  // as in Hugging Face files
  at::Tensor a, b;     // fp32 [R, in] and [out, R]
};

struct AdapterForm {
  int64_t rank = 0;
  bool ffn_only = false;
};

class Adapter {
 public:
  Adapter() = default;
  explicit Adapter(std::vector<AdapterPair> pairs) : pairs_(std::move(pairs)) {}
  // Whether a tensor of a model file is a weight that may have a pair.
  static bool Pairs(const model::NamedTensor& t);
  // One pair for every matrix of the layers, or of their FFNs only, on the device of the weights. a is uniform in
  // +-1/sqrt(in), drawn by (seed, weight); b is 0, so that nothing changes at first.
  static Adapter Make(const model::Config& config, const model::Parameters& parameters, const AdapterForm& form,
                      uint64_t seed);

  // adapter.<weight>.a and .b per pair. Not copies.
  NamedTensors Named() const;
  // `parameters` with every paired weight replaced by its effective one, in `dtype`; gradients reach the pairs.
  model::Parameters Apply(const model::Config& config, const model::Parameters& parameters, at::ScalarType dtype) const;
  const std::vector<AdapterPair>& pairs() const { return pairs_; }

 private:
  std::vector<AdapterPair> pairs_;
};

}  // namespace outrider::moe
