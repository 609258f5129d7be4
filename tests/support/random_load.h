#pragma once
// Arrivals for replays: exponential gaps, texts whose experts are skewed and come in runs.

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "sched/simulate.h"

namespace outrider::sched {

struct LoadShape {
  size_t requests = 0;
  double gap_s = 0;                        // between arrivals, on average
  int64_t prompt_max = 1, output_max = 1;  // tokens, drawn evenly from 1 on
  int64_t experts = 0;
  double stay = 0.7;  // chance that a token keeps the expert of the one before
  double skew = 0.6;  // chance of the next expert against the one before it in the order of popularity
};

// Arrivals that own their experts.
class RandomLoad {
 public:
  RandomLoad(const LoadShape& shape, uint64_t seed) : shape_(shape), random_(seed) {
    double time_s = 0;
    experts_.resize(shape.requests);
    for (std::vector<uint8_t>& experts : experts_) {
      Arrival arrival;
      time_s -= shape.gap_s * std::log(1 - Uniform());
      arrival.time_s = time_s;
      arrival.prompt_tokens = UpTo(shape.prompt_max);
      arrival.output_tokens = UpTo(shape.output_max);
      if (shape.experts > 0) {
        for (int64_t i = 0; i < arrival.prompt_tokens + arrival.output_tokens; ++i) {
          experts.push_back(i > 0 && Uniform() < shape.stay ? experts.back() : AnyExpert());
        }
      }
      arrival.experts = experts;
      arrivals_.push_back(arrival);
    }
  }

  const std::vector<Arrival>& arrivals() const { return arrivals_; }

 private:
  double Uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }
  int64_t UpTo(int64_t most) { return 1 + static_cast<int64_t>(random_() % static_cast<uint64_t>(most)); }
  uint8_t AnyExpert() {
    uint8_t expert = 0;
    while (expert + 1 < shape_.experts && Uniform() < shape_.skew) ++expert;
    return expert;
  }

  const LoadShape shape_;
  std::mt19937_64 random_;
  std::vector<std::vector<uint8_t>> experts_;
  std::vector<Arrival> arrivals_;
};

}  // namespace outrider::sched
