#include "moe/layer_router.h"

#include <tuple>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "base/check.h"

namespace outrider::moe {

LayerRouter::LayerRouter(NamedTensors parameters, int64_t top) : parameters_(std::move(parameters)), top_(top) {
  OUTRIDER_CHECK(top >= 1 && top <= experts(), "the best ", top, " of ", experts(), " experts");
}

LayerRouter LayerRouter::Linear(int64_t layers, int64_t experts, int64_t hidden, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  return {{{"weight", at::zeros({layers, experts, hidden}, options)}, {"bias", at::zeros({layers, experts}, options)}},
          1};
}

LayerRouter LayerRouter::Gated(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& scale,
                               const at::Tensor& bias, int64_t top) {
  OUTRIDER_CHECK(gate.dim() == 3 && gate.sizes() == up.sizes() && scale.sizes() == gate.sizes().slice(0, 2) &&
                     bias.sizes() == scale.sizes(),
                 gate.sizes(), up.sizes(), scale.sizes(), bias.sizes());
  return {{{"gate", gate}, {"up", up}, {"scale", scale}, {"bias", bias}}, top};
}

int64_t LayerRouter::ParameterCount() const {
  int64_t count = 0;
  for (const NamedTensor& p : parameters_) count += p.tensor.numel();
  return count;
}

at::Tensor LayerRouter::Logits(int64_t layer, const at::Tensor& x) const {
  const at::Tensor wide = x.to(at::kFloat);
  const auto at_layer = [&](size_t i) { return parameters_[i].tensor.select(0, layer); };
  if (parameters_.size() == 2) return at::linear(wide, at_layer(0), at_layer(1));
  const at::Tensor h = at::silu(at::linear(wide, at_layer(0))) * at::linear(wide, at_layer(1));
  return h.abs() * at_layer(2) + at_layer(3);
}

at::Tensor LayerRouter::Choose(const at::Tensor& logits) const {
  if (top_ == 1) return logits.argmax(-1, /*keepdim=*/true);
  return std::get<1>(logits.topk(top_, -1));
}

}  // namespace outrider::moe
