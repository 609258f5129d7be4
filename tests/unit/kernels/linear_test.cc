// Panels of each format and each engine of this processor against double loops; and what their bits may depend on.
#include "kernels/linear.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>

#include "kernels/cpu.h"
#include "reference.h"

namespace outrider::kernels::tests {
namespace {

constexpr Number kAll[] = {Number::kF32, Number::kBf16, Number::kI8};

struct Problem {
  int64_t rows, columns, tokens;
  std::vector<float> weights, bias, x;

  Problem(int64_t r, int64_t c, int64_t t, uint32_t seed) : rows(r), columns(c), tokens(t) {
    std::mt19937 random(seed);
    weights = RandomNumbers(random, r * c, 0.3F, Number::kF32).values;
    bias = RandomNumbers(random, r, 1, Number::kF32).values;
    x = RandomNumbers(random, t * c, 1, Number::kF32).values;
  }

  Matrix Packed(Number number, bool biased = true) const {
    const auto read = [&](int64_t row, float* to) { std::copy_n(weights.data() + row * columns, columns, to); };
    return Matrix::Pack(rows, columns, number, read, biased ? std::span(bias) : std::span<const float>());
  }

  // y [tokens, rows] of tokens [first, first + count).
  std::vector<float> Compute(const Matrix& matrix, const LinearEngine& engine, Workers& workers, int64_t first,
                             int64_t count) const {
    std::vector<float> y(static_cast<size_t>(count * rows), -77);
    Scratch scratch;
    Linear(matrix, {x.data() + first * columns, count, y.data(), rows}, engine, scratch, workers);
    return y;
  }
};

TEST(Matrix, RowsComeBackAsTheFormatHoldsThem) {
  const Problem p(45, 70, 1, 1);
  for (const Number number : kAll) {
    const Matrix matrix = p.Packed(number);
    std::vector<float> row(70);
    for (int64_t r = 0; r < 45; ++r) {
      matrix.Row(r, row.data());
      for (size_t k = 0; k < 70; ++k) {
        const float expected = p.weights[static_cast<size_t>(r) * 70 + k];
        if (number == Number::kF32) {
          EXPECT_EQ(row[k], expected);
        } else if (number == Number::kBf16) {
          EXPECT_EQ(row[k], FloatOf(Bf16Of(expected)));
        } else {
          EXPECT_NEAR(row[k], expected, 2.0 / 127 / 2 * 1.01) << "half a step, for values up to 2";
        }
      }
    }
  }
}

TEST(Matrix, BytesCountPaddingAndScales) {
  EXPECT_EQ(Problem(64, 96, 1, 1).Packed(Number::kF32, false).bytes(), 64 * 96 * 4);
  EXPECT_EQ(Problem(64, 96, 1, 1).Packed(Number::kBf16, true).bytes(), 64 * 96 * 2 + 64 * 4);
  EXPECT_EQ(Problem(33, 40, 1, 1).Packed(Number::kI8, false).bytes(), 64 * (64 + 2 * 2));
}

TEST(Linear, AgreesWithDoubleLoops) {
  Workers workers(2);
  uint32_t seed = 0;
  for (const auto& [rows, columns, tokens] :
       {std::tuple<int, int, int>{32, 32, 1}, {33, 40, 7}, {70, 576, 33}, {8, 24, 3}, {200, 128, 64}}) {
    const Problem p(rows, columns, tokens, ++seed);
    for (const Number number : kAll) {
      const Matrix matrix = p.Packed(number);
      std::vector<float> row(static_cast<size_t>(columns));
      for (const LinearEngine* engine : LinearEngines(number)) {
        const auto y = p.Compute(matrix, *engine, workers, 0, tokens);
        for (int64_t r = 0; r < rows; ++r) {
          matrix.Row(r, row.data());
          for (int64_t t = 0; t < tokens; ++t) {
            double sum = p.bias[static_cast<size_t>(r)], terms = 1;
            double rounding = 0;  // of x to steps of 1/32767 of the highest of its block, which is below 5
            for (int64_t k = 0; k < columns; ++k) {
              const double x = p.x[static_cast<size_t>(t * columns + k)], w = row[static_cast<size_t>(k)];
              sum += x * w;
              terms += std::abs(x * w);
              rounding += std::abs(w) * 5.0 / 32767 / 2;
            }
            const double tolerance = 4e-7 * terms + (number == Number::kI8 ? rounding : 0);
            ASSERT_NEAR(y[static_cast<size_t>(t * rows + r)], sum, tolerance)
                << engine->name << " " << rows << "x" << columns << " row " << r << " token " << t;
          }
        }
      }
    }
  }
}

// All engines round x and multiply whole numbers alike; only the joining of blocks may round differently.
TEST(Linear, EnginesOfWholeNumbersAgree) {
  Workers workers(1);
  const Problem p(64, 320, 9, 5);
  const Matrix matrix = p.Packed(Number::kI8);
  const auto engines = LinearEngines(Number::kI8);
  const auto first = p.Compute(matrix, *engines.front(), workers, 0, 9);
  for (const LinearEngine* engine : engines) {
    const auto y = p.Compute(matrix, *engine, workers, 0, 9);
    for (size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], first[i], 2e-5) << engine->name;
  }
}

TEST(Linear, ATokensBitsDependOnNeitherOtherTokensNorThreads) {
  Workers one(1), two(2), three(3);
  const Problem p(130, 96, 64, 9);
  for (const Number number : kAll) {
    const Matrix matrix = p.Packed(number);
    for (const LinearEngine* engine : LinearEngines(number)) {
      const auto all = p.Compute(matrix, *engine, one, 0, 64);
      EXPECT_EQ(all, p.Compute(matrix, *engine, two, 0, 64)) << engine->name;
      for (const int64_t count : {1, 2, 3, 5, 8, 13, 31}) {
        for (int64_t first = 0; first + count <= 64; first += count + 6) {
          const auto some = p.Compute(matrix, *engine, three, first, count);
          ASSERT_EQ(std::memcmp(some.data(), all.data() + first * 130, some.size() * 4), 0)
              << engine->name << ": tokens " << first << " to " << first + count;
        }
      }
    }
  }
}

TEST(Linear, AddsToWhatIsThereAndKeepsBehindTheRows) {
  Workers workers(2);
  const Problem p(40, 64, 3, 2);
  for (const Number number : kAll) {
    const Matrix matrix = p.Packed(number, false);
    const LinearEngine& engine = *LinearEngines(number).front();
    const auto y = p.Compute(matrix, engine, workers, 0, 3);
    std::vector<float> sums(3 * 50, 2);
    Scratch scratch;
    Linear(matrix, {p.x.data(), 3, sums.data(), 50, Into::kAdd}, engine, scratch, workers);
    for (size_t t = 0; t < 3; ++t)
      for (size_t r = 0; r < 50; ++r) EXPECT_EQ(sums[t * 50 + r], r < 40 ? 2 + y[t * 40 + r] : 2);
  }
}

// Zero blocks have scale zero, and extremes of a block come back without overflow.
TEST(Linear, WholeNumbersAtTheirLimits) {
  Workers workers(1);
  Problem p(32, 64, 2, 3);
  for (size_t k = 0; k < 64; ++k) {
    for (size_t r = 0; r < 32; ++r) p.weights[r * 64 + k] = k < 32 ? 0.0F : r % 2 == 0 ? 1e4F : -1e4F;
    p.x[k] = k < 32 ? 0.0F : 3e3F;
    p.x[64 + k] = -3e3F;
  }
  const Matrix matrix = p.Packed(Number::kI8, false);
  for (const LinearEngine* engine : LinearEngines(Number::kI8)) {
    const auto y = p.Compute(matrix, *engine, workers, 0, 2);
    for (size_t r = 0; r < 32; ++r) {
      const double expected = 32 * 1e4 * 3e3 * (r % 2 == 0 ? 1 : -1);
      EXPECT_NEAR(y[r], expected, 1e-2 * 32 * 3e7) << engine->name;
      EXPECT_EQ(y[32 + r], -y[r]) << engine->name;
    }
  }
}

}  // namespace
}  // namespace outrider::kernels::tests
