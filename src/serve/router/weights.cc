#include "serve/router/weights.h"

#include <cmath>
#include <string>
#include <utility>

namespace outrider::serve {
namespace {

std::vector<float> Frequencies(const RouterSpec& spec) {
  const int64_t half = spec.head_dim() / 2;
  std::vector<float> frequencies;
  for (int64_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(i) * static_cast<float>(-1.0 / static_cast<double>(half));
    frequencies.push_back(std::pow(static_cast<float>(spec.rope_base), exponent));
  }
  return frequencies;
}

// One projection with its bias, the rows of several names behind each other.
base::Result<RouterMatrix> Projection(const WeightSource& source, const std::vector<std::string>& names, int64_t rows,
                                      int64_t columns) {
  RouterMatrix all;
  for (const std::string& name : names) {
    const auto found = FindMatrix(source, name + ".weight", rows, columns);
    if (!found) return tl::unexpected(found.error());
    const auto bias = FindVector(source, name + ".bias", rows);
    if (!bias) return tl::unexpected(bias.error());
    const auto at = static_cast<int64_t>(all.weight.size());
    all.weight.resize(static_cast<size_t>(at + rows * columns));
    for (int64_t row = 0; row < rows; ++row) found->Read(row, all.weight.data() + at + row * columns);
    all.bias.insert(all.bias.end(), bias->begin(), bias->end());
  }
  return all;
}

}  // namespace

base::Result<RouterWeights> ReadRouter(const RouterSpec& spec, const WeightSource& source, int64_t backbone_width) {
  RouterWeights weights;
  base::Error error;
  const auto take = [&](auto result, auto& to) {
    if (result)
      to = *std::move(result);
    else if (error.code.empty())
      error = result.error();
  };
  const int64_t w = spec.width;
  if (spec.context == RouterContext::kCausal) {
    take(FindVector(source, "block.attn_norm.weight", w), weights.attn_norm);
    take(Projection(source, {"block.q", "block.k", "block.v"}, w, w), weights.qkv);
    take(Projection(source, {"block.o"}, w, w), weights.o);
  }
  take(FindVector(source, "block.mlp_norm.weight", w), weights.mlp_norm);
  take(Projection(source, {"block.w1"}, w, w), weights.w1);
  take(Projection(source, {"block.w2"}, w, w), weights.w2);
  take(FindVector(source, "norm.weight", w), weights.norm);
  take(Projection(source, {"head"}, spec.experts, w), weights.head);
  const bool own = spec.table == RouterTable::kOwn;
  take(FindMatrix(source, own ? "embed.weight" : "model.embed_tokens.weight", spec.vocab, own ? w : backbone_width),
       weights.table);
  if (!error.code.empty()) return tl::unexpected(error);
  weights.frequencies = Frequencies(spec);
  return weights;
}

}  // namespace outrider::serve
