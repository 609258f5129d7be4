#pragma once
// Measured speed of passes: what weights cost by the byte and tokens by the piece.

#include <algorithm>
#include <cstdint>

namespace outrider::serve {

// Exponentially weighted; steps with few tokens tell the rate of weights, those with many the time of a token.
class Rates {
 public:
  void Add(int64_t weight_bytes, int64_t tokens, double seconds) {
    if (seconds <= 0 || weight_bytes <= 0) return;
    const double bytes = static_cast<double>(weight_bytes), count = static_cast<double>(tokens);
    if (tokens <= kFewTokens || bytes_per_s_ == 0) Move(bytes_per_s_, bytes / seconds);
    if (tokens > kFewTokens) Move(token_s_, std::max(0.0, seconds - bytes / bytes_per_s_) / count);
  }

  double bytes_per_s() const { return bytes_per_s_; }
  double token_s() const { return token_s_; }

 private:
  static constexpr int64_t kFewTokens = 8;
  static constexpr double kNew = 0.1;  // weight of the newest value

  static void Move(double& mean, double value) { mean = mean == 0 ? value : mean + kNew * (value - mean); }

  double bytes_per_s_ = 0, token_s_ = 0;
};

}  // namespace outrider::serve
