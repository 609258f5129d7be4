#pragma once
// Angles of the rotary positions.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>

#include <numbers>

#include "model/config.h"

namespace outrider::model {

// float32 [head_dim / 2]: radians per position.
inline at::Tensor InverseFrequencies(const Config& config, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  const at::Tensor steps = at::arange(0, config.head_dim, 2, options) / static_cast<double>(config.head_dim);
  const at::Tensor plain = at::pow(config.rope_theta, steps).reciprocal();
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.kind == RopeScaling::Kind::kNone) return plain;
  const at::Tensor stretched = plain / scaling.factor;
  if (scaling.kind == RopeScaling::Kind::kLinear) return stretched;
  // Llama 3: short waves stay, long ones are stretched, between them a blend.
  const at::Tensor wavelength = 2 * std::numbers::pi / plain;
  const double low = scaling.low_frequency_factor, high = scaling.high_frequency_factor;
  const auto original = static_cast<double>(scaling.original_positions);
  const at::Tensor smooth = (original / wavelength - low) / (high - low);
  const at::Tensor blend = (1 - smooth) * stretched + smooth * plain;
  return at::where(wavelength > original / low, stretched, at::where(wavelength < original / high, plain, blend));
}

}  // namespace outrider::model
