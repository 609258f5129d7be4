// Draws against a plain reference in double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <set>

#include "base/philox.h"
#include "sampling/sampler.h"
#include "unit/sampling/rows.h"

namespace outrider::sampling {
namespace {

double Uniform(uint64_t seed, uint64_t step) {
  const base::PhiloxBlock out = base::Philox(seed, {static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)});
  return static_cast<double>(((uint64_t{out[1]} << 32) | out[0]) >> 11) * 0x1p-53;
}

class Reference {
 public:
  Reference(const std::vector<float>& logits, double temperature, int64_t top_k) : ids_(logits.size()) {
    std::iota(ids_.begin(), ids_.end(), 0);
    kept_ = top_k > 0 ? std::min(ids_.size(), static_cast<size_t>(top_k)) : ids_.size();
    logits_ = &logits;
    temperature_ = temperature;
  }

  void Order(double top_p) {
    if (kept_ < ids_.size() || top_p < 1)
      std::sort(ids_.begin(), ids_.end(), [&](int64_t a, int64_t b) { return At(a) != At(b) ? At(a) > At(b) : a < b; });
    const double largest = *std::max_element(logits_->begin(), logits_->end());
    double sum = 0;
    for (size_t i = 0; i < kept_; ++i) reached_.push_back(sum += std::exp((At(ids_[i]) - largest) / temperature_));
  }

  // What is drawn if the limit of top_p and the uniform number are moved a little.
  int64_t Draw(double top_p, double uniform) const {
    size_t end = kept_;
    if (top_p < 1) {
      const auto enough = std::lower_bound(reached_.begin(), reached_.end() - 1, top_p * reached_.back());
      end = static_cast<size_t>(enough - reached_.begin()) + 1;
    }
    const auto last = reached_.begin() + static_cast<std::ptrdiff_t>(end) - 1;
    return ids_[static_cast<size_t>(std::upper_bound(reached_.begin(), last, uniform * *last) - reached_.begin())];
  }

 private:
  double At(int64_t id) const { return (*logits_)[static_cast<size_t>(id)]; }

  const std::vector<float>* logits_;
  double temperature_;
  std::vector<int64_t> ids_;
  size_t kept_;
  std::vector<double> reached_;
};

Sampling RandomSampling(std::mt19937& random, int64_t size) {
  const std::array<double, 9> temperatures = {1e-310, 1e-6, 0.05, 0.3, 0.7, 1, 1.5, 10, 100};
  const std::array<int64_t, 9> top_k = {0, 0, 1, 2, 16, 100, size - 1, size, size + 5};
  const std::array<double, 8> top_p = {0, 1e-6, 0.5, 0.9, 0.999999, 1, 1, 0.95};
  return {temperatures[random() % 9], top_k[random() % 9], top_p[random() % 8], random()};
}

TEST(Draws, AreThoseOfTheReference) {
  constexpr int kRows = 2'000, kSteps = 10;
  constexpr double kSlack = 1e-6;
  std::mt19937 random(1);
  int compared = 0;
  for (int i = 0; i < kRows; ++i) {
    const std::vector<float> logits = RandomRow(random, RandomSize(random), i % kRowKinds);
    const Sampling sampling = RandomSampling(random, std::ssize(logits));
    Reference reference(logits, sampling.temperature, sampling.top_k);
    reference.Order(sampling.top_p);
    for (uint64_t step = 0; step < kSteps; ++step) {
      const double uniform = Uniform(sampling.seed, step);
      const int64_t expected = reference.Draw(sampling.top_p, uniform);
      bool certain = true;
      for (const double p : {-kSlack, 0.0, kSlack})
        for (const double u : {-kSlack, kSlack}) {
          const double moved = sampling.top_p < 1 ? std::clamp(sampling.top_p * (1 + p), 0.0, 1 - 1e-12) : 1;
          certain = certain && reference.Draw(moved, std::clamp(uniform + u, 0.0, 1 - 1e-16)) == expected;
        }
      const int64_t drawn = PickToken(logits, sampling, step);
      ASSERT_TRUE(drawn >= 0 && drawn < std::ssize(logits));
      if (!certain) continue;
      ++compared;
      ASSERT_EQ(drawn, expected) << "row " << i << " of " << logits.size() << " at " << uniform << ": temperature "
                                 << sampling.temperature << ", top_k " << sampling.top_k << ", top_p "
                                 << sampling.top_p;
    }
  }
  EXPECT_GT(compared, kRows * kSteps * 99 / 100);
}

TEST(Draws, EqualWeightsAreCutExactly) {
  for (const size_t size : {2, 4, 64, 256}) {
    const std::vector<float> logits(size, -1.5F);
    for (const int64_t parts : {2, 4}) {
      std::set<int64_t> by_p, by_k;
      const auto kept = static_cast<int64_t>(size) / 2;
      for (uint64_t step = 0; step < 12 * size; ++step) {
        by_p.insert(PickToken(logits, {.temperature = 0.9, .top_p = 0.5}, step));
        by_k.insert(
            PickToken(logits, {.temperature = 0.9, .top_k = kept, .top_p = 1.0 / static_cast<double>(parts)}, step));
      }
      EXPECT_EQ(std::ssize(by_p), kept);
      EXPECT_EQ(*by_p.rbegin(), kept - 1);
      EXPECT_EQ(*by_k.rbegin(), std::max<int64_t>(kept / parts, 1) - 1);
    }
  }
}

TEST(Draws, WhatWeighsNothingIsNeverDrawn) {
  std::mt19937 random(3);
  for (const size_t size : {3, 600, 5000}) {
    std::vector<float> logits(size, -500.0F);
    std::set<int64_t> likely;
    for (int i = 0; i < 2; ++i) likely.insert(static_cast<int64_t>(random() % size));
    for (const int64_t id : likely) logits[static_cast<size_t>(id)] = 1;
    for (const Sampling& sampling : {Sampling{.temperature = 1}, Sampling{.temperature = 1, .top_p = 0.999999},
                                     Sampling{.temperature = 1, .top_k = std::ssize(logits) - 1}}) {
      std::set<int64_t> drawn;
      for (uint64_t step = 0; step < 200; ++step) drawn.insert(PickToken(logits, sampling, step));
      EXPECT_EQ(drawn, likely);
    }
  }
}

TEST(Draws, SmallTemperaturesAreGreedy) {
  std::mt19937 random(4);
  for (int i = 0; i < 70; ++i) {
    const std::vector<float> logits = RandomRow(random, RandomSize(random), i % kRowKinds);
    const auto largest = *std::max_element(logits.begin(), logits.end());
    for (const double top_p : {1.0, 0.9})
      for (const int64_t top_k : {0, 7}) {
        const int64_t id = PickToken(logits, {.temperature = 1e-310, .top_k = top_k, .top_p = top_p}, i);
        EXPECT_EQ(logits[static_cast<size_t>(id)], largest);
      }
  }
}

}  // namespace
}  // namespace outrider::sampling
