// Norm, silu, rotary pairs and attention of each engine of this processor against double loops.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "kernels/attention.h"
#include "kernels/cpu.h"
#include "reference.h"

namespace outrider::kernels::tests {
namespace {

std::vector<float> Normal(uint32_t seed, int64_t count) {
  std::mt19937 random(seed);
  return RandomNumbers(random, count, 1, Number::kF32).values;
}

TEST(TokenWork, NormAndSilu) {
  for (const TokenEngine* engine : TokenEngines()) {
    for (const int64_t size : {8, 31, 64, 100, 576}) {
      const auto x = Normal(1, size), weight = Normal(2, size);
      double squares = 0;
      for (const float v : x) squares += static_cast<double>(v) * v;
      std::vector<float> y(x.size()), z = x;
      engine->norm(x.data(), weight.data(), size, 1e-5F, y.data());
      engine->silu(z.data(), size);
      for (size_t i = 0; i < x.size(); ++i) {
        const double expected = weight[i] * x[i] / std::sqrt(squares / static_cast<double>(size) + 1e-5);
        EXPECT_NEAR(y[i], expected, 1e-6 * (1 + std::abs(expected))) << engine->name;
        EXPECT_NEAR(z[i], x[i] / (1 + std::exp(-static_cast<double>(x[i]))), 1e-6) << engine->name;
      }
    }
  }
}

TEST(TokenWork, JoinAddsThePartsInOrder) {
  for (const TokenEngine* engine : TokenEngines()) {
    for (const int64_t size : {1, 8, 19, 64}) {
      const int64_t count = 5, stride = size + 3;
      const auto parts = Normal(5, count * stride), before = Normal(6, size);
      std::vector<float> set(before.size(), 7), scaled = set, added = before;
      engine->join(parts.data(), count, stride, size, nullptr, false, set.data());
      engine->join(parts.data(), count, stride, size, nullptr, true, added.data());
      engine->join(parts.data(), count, stride, size, before.data(), false, scaled.data());
      for (int64_t i = 0; i < size; ++i) {
        float total = parts[static_cast<size_t>(i)];
        for (int64_t part = 1; part < count; ++part) total += parts[static_cast<size_t>(part * stride + i)];
        EXPECT_EQ(set[static_cast<size_t>(i)], total) << engine->name;
        EXPECT_EQ(scaled[static_cast<size_t>(i)], total * before[static_cast<size_t>(i)]) << engine->name;
        EXPECT_EQ(added[static_cast<size_t>(i)], before[static_cast<size_t>(i)] + total) << engine->name;
      }
    }
  }
}

TEST(TokenWork, Rotate) {
  for (const TokenEngine* engine : TokenEngines()) {
    for (const int64_t half : {1, 4, 9, 16, 40}) {
      const auto x = Normal(3, 2 * half), angle = Normal(4, half);
      std::vector<float> cos, sin, y = x;
      for (const float a : angle) cos.push_back(std::cos(a)), sin.push_back(std::sin(a));
      engine->rotate(y.data(), cos.data(), sin.data(), half);
      for (size_t i = 0; i < angle.size(); ++i) {
        const size_t j = i + angle.size();
        EXPECT_NEAR(y[i], x[i] * cos[i] - x[j] * sin[i], 1e-6) << engine->name;
        EXPECT_NEAR(y[j], x[j] * cos[i] + x[i] * sin[i], 1e-6) << engine->name;
      }
    }
  }
}

struct Cache {
  KvShape shape;
  int64_t positions;
  std::vector<float> keys, values;  // [positions, heads, head_dim]
  std::vector<int32_t> pages;
  std::vector<float> memory;

  // Pages in an order of their own; what no position wrote is NaN.
  Cache(const KvShape& s, int64_t count, uint32_t seed) : shape(s), positions(count) {
    keys = Normal(seed, count * s.heads * s.head_dim);
    values = Normal(seed + 1, count * s.heads * s.head_dim);
    const auto used = static_cast<int32_t>((count + kPageTokens - 1) / kPageTokens);
    for (int32_t i = 0; i < used; ++i) pages.push_back((i * 7 + static_cast<int32_t>(seed)) % 31);
    memory.assign(static_cast<size_t>(31 * s.PageFloats()), std::numeric_limits<float>::quiet_NaN());
    for (int64_t p = 0; p < count; ++p) {
      const int64_t at = p * s.heads * s.head_dim;
      StoreKeyValue(s, memory.data() + pages[static_cast<size_t>(p / kPageTokens)] * s.PageFloats(), p,
                    keys.data() + at, values.data() + at);
    }
  }

  std::vector<float> Attend(const TokenEngine& engine, const std::vector<float>& q, int64_t head, int64_t first,
                            int64_t last, float scale) const {
    std::vector<float> scores(static_cast<size_t>(ScoreFloats(shape, positions)));
    std::vector<float> out(static_cast<size_t>(shape.group * shape.head_dim), -5);
    const KvView view{memory.data() + head * shape.HeadFloats(),
                      shape.PageFloats(),
                      pages.data(),
                      first,
                      last,
                      shape.group,
                      shape.head_dim,
                      scale};
    engine.attend(view, q.data(), scores.data(), out.data());
    return out;
  }

  double Score(const std::vector<float>& q, int64_t g, int64_t head, int64_t p, float scale) const {
    double dot = 0;
    for (int64_t d = 0; d < shape.head_dim; ++d)
      dot += static_cast<double>(q[static_cast<size_t>(g * shape.head_dim + d)]) *
             keys[static_cast<size_t>((p * shape.heads + head) * shape.head_dim + d)];
    return std::exp(dot * scale);
  }
};

TEST(Attention, AgreesWithDoubleLoopsWhateverTheWindow) {
  uint32_t seed = 10;
  for (const KvShape shape : {KvShape{3, 3, 64}, KvShape{1, 1, 8}, KvShape{2, 7, 24}, KvShape{2, 2, 128}}) {
    const Cache cache(shape, 75, ++seed);
    const auto q = Normal(seed, shape.group * shape.head_dim);
    const float scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
    for (const TokenEngine* engine : TokenEngines()) {
      for (const auto& [first, last] :
           {std::pair<int64_t, int64_t>{0, 0}, {0, 15}, {0, 16}, {5, 74}, {20, 41}, {33, 33}}) {
        const int64_t head = last % shape.heads;
        const auto out = cache.Attend(*engine, q, head, first, last, scale);
        for (int64_t g = 0; g < shape.group; ++g) {
          for (int64_t d = 0; d < shape.head_dim; ++d) {
            double sum = 0, total = 0;
            for (int64_t p = first; p <= last; ++p) {
              const double e = cache.Score(q, g, head, p, scale);
              total += e;
              sum += e * cache.values[static_cast<size_t>((p * shape.heads + head) * shape.head_dim + d)];
            }
            ASSERT_NEAR(out[static_cast<size_t>(g * shape.head_dim + d)], sum / total, 3e-6)
                << engine->name << " positions " << first << " to " << last;
          }
        }
      }
    }
  }
}

// Positions behind the last one, and pages elsewhere, change nothing.
TEST(Attention, BitsDependOnThePositionsSeenAlone) {
  const KvShape shape{2, 3, 32};
  const Cache longer(shape, 60, 3), shuffled(shape, 60, 3);
  Cache other = shuffled;
  other.memory.assign(other.memory.size(), 1e30F);
  for (size_t i = 0; i < other.pages.size(); ++i) other.pages[i] = static_cast<int32_t>(20 - i);
  const int64_t last = 37, size = shape.heads * shape.head_dim;
  for (int64_t p = 0; p <= last; ++p)
    StoreKeyValue(shape, other.memory.data() + other.pages[static_cast<size_t>(p / kPageTokens)] * shape.PageFloats(),
                  p, longer.keys.data() + p * size, longer.values.data() + p * size);
  const auto q = Normal(5, shape.group * shape.head_dim);
  for (const TokenEngine* engine : TokenEngines())
    EXPECT_EQ(longer.Attend(*engine, q, 1, 0, last, 0.2F), other.Attend(*engine, q, 1, 0, last, 0.2F)) << engine->name;
}

}  // namespace
}  // namespace outrider::kernels::tests
