#pragma once
// What a draw gives each logit: exp((logit - largest) / temperature) in single precision.

#include <span>

namespace outrider::sampling {

// A weight is a function of its logit alone, and a sum one of its logits in their order: 1 for the largest, within
// 1e-6 of the exponent's own rounding, 0 below exp(-87) and for what is no number. However small the temperature is,
// weights are finite.
class Weigher {
 public:
  // `largest` is finite, `temperature` above 0.
  Weigher(float largest, double temperature);

  // weights[i] for logits[i]; the two may be the same.
  void Weigh(std::span<const float> logits, float* weights) const;
  double Sum(std::span<const float> logits) const;

  float largest() const { return largest_; }
  double temperature() const { return temperature_; }

 private:
  float largest_, stretch_, scale_;
  double temperature_;
};

}  // namespace outrider::sampling
