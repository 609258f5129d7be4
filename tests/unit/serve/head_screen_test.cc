#include "serve/cpu/head_screen.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/linear.h"
#include "sampling/likeliest.h"

namespace outrider::serve {
namespace {

using kernels::Matrix;
using kernels::Number;

constexpr int64_t kColumns = 96;

struct Head {
  int64_t rows;
  std::vector<float> values;  // [rows, kColumns]

  explicit Head(int64_t count) : rows(count), values(static_cast<size_t>(count * kColumns)) {}
  float* Row(int64_t row) { return values.data() + row * kColumns; }
  Matrix As(Number number, std::span<const float> bias = {}) const {
    const auto read = [this](int64_t row, float* to) { std::copy_n(values.data() + row * kColumns, kColumns, to); };
    return Matrix::Pack(rows, kColumns, number, read, bias);
  }
};

Head RandomHead(int64_t rows, uint32_t seed) {
  Head head(rows);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (float& v : head.values) v = normal(random);
  return head;
}

std::vector<float> RandomInput(int64_t tokens, uint32_t seed) {
  std::vector<float> x(static_cast<size_t>(tokens * kColumns));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (float& v : x) v = normal(random);
  for (size_t i = 5; i < x.size(); i += kColumns) x[i] *= 40;  // as in language models
  return x;
}

std::vector<int64_t> FromAllLogits(const Matrix& head, const std::vector<float>& x) {
  const int64_t tokens = std::ssize(x) / kColumns, rows = head.rows();
  std::vector<float> logits(static_cast<size_t>(tokens * rows));
  kernels::Scratch scratch;
  kernels::Workers workers(1);
  kernels::Linear(head, {x.data(), tokens, logits.data(), rows}, scratch, workers);
  std::vector<int64_t> best;
  for (int64_t t = 0; t < tokens; ++t)
    best.push_back(sampling::LikeliestId({logits.data() + t * rows, static_cast<size_t>(rows)}));
  return best;
}

struct Screened {
  std::vector<int64_t> best;
  int64_t bytes = 0;
};

Screened Screen(const Matrix& head, const std::vector<float>& x, int threads = 2) {
  const HeadScreen screen = HeadScreen::Of(head);
  EXPECT_TRUE(screen.on());
  Screened out;
  out.best.resize(x.size() / kColumns);
  ScreenMemory memory;
  kernels::Workers workers(threads);
  const auto bytes = screen.Likeliest(head, x.data(), out.best, memory, workers);
  EXPECT_TRUE(bytes.has_value());
  out.bytes = bytes.value_or(-1);
  return out;
}

TEST(HeadScreen, FindsWhatAllLogitsGive) {
  for (const Number number : {Number::kF32, Number::kBf16}) {
    for (const int64_t rows : {1, 31, 512, 1500, 5003}) {
      const Matrix head = RandomHead(rows, static_cast<uint32_t>(rows)).As(number);
      for (const int64_t tokens : {1, 2, 7, 40}) {
        const std::vector<float> x = RandomInput(tokens, static_cast<uint32_t>(tokens));
        EXPECT_EQ(Screen(head, x).best, FromAllLogits(head, x)) << rows << " rows, " << tokens << " tokens";
      }
    }
  }
}

// Rows that differ by less than their copies can tell: the copies alone name the wrong row for many inputs.
TEST(HeadScreen, RowsThatAreNearlyEqual) {
  Head head = RandomHead(700, 3);
  std::mt19937 random(4);
  std::uniform_int_distribution<int64_t> column(0, kColumns - 1);
  for (int64_t r = 1; r < head.rows; ++r) {
    std::copy_n(head.Row(0), kColumns, head.Row(r));
    for (int i = 0; i < 3; ++i) head.Row(r)[column(random)] *= 1 + 1e-3F * static_cast<float>(i - 1);
  }
  const std::vector<float> x = RandomInput(60, 5);
  for (const Number number : {Number::kF32, Number::kBf16}) {
    const Matrix whole = head.As(number);
    const std::vector<int64_t> expected = FromAllLogits(whole, x);
    EXPECT_EQ(Screen(whole, x).best, expected);
    EXPECT_NE(FromAllLogits(head.As(Number::kI8), x), expected) << "a test that shows nothing";
  }
}

// Likewise a few among many, each computed for itself.
TEST(HeadScreen, AFewRowsThatAreNearlyEqual) {
  Head head = RandomHead(6000, 15);
  std::mt19937 random(16);
  std::uniform_int_distribution<int64_t> column(0, kColumns - 1);
  const std::vector<float> best = RandomInput(1, 17);
  for (int64_t r = 50; r < head.rows; r += 400) {
    for (int64_t k = 0; k < kColumns; ++k) head.Row(r)[k] = 2 * best[static_cast<size_t>(k)];
    for (int i = 0; i < 3; ++i) head.Row(r)[column(random)] *= 1 + 1e-3F * static_cast<float>(i - 1);
  }
  const Matrix whole = head.As(Number::kF32);
  bool confused = false;
  for (uint32_t seed = 0; seed < 30; ++seed) {
    std::vector<float> x = RandomInput(1, 100 + seed);
    for (size_t k = 0; k < x.size(); ++k) x[k] = best[k] + 0.1F * x[k];
    const Screened found = Screen(whole, x);
    ASSERT_EQ(found.best, FromAllLogits(whole, x)) << seed;
    EXPECT_GT(found.bytes, 0);
    EXPECT_LE(found.bytes, 15 * whole.panel_bytes());
    confused = confused || FromAllLogits(head.As(Number::kI8), x) != found.best;
  }
  EXPECT_TRUE(confused) << "a test that shows nothing";
}

TEST(HeadScreen, TheLowestOfEqualRows) {
  Head head = RandomHead(900, 6);
  const std::vector<float> x = RandomInput(20, 7);
  for (const int64_t r : {3, 40, 517, 899}) {
    for (int64_t k = 0; k < kColumns; ++k) head.Row(r)[k] = 3 * x[static_cast<size_t>(k)];  // best for the first input
  }
  const Screened found = Screen(head.As(Number::kF32), x);
  EXPECT_EQ(found.best, FromAllLogits(head.As(Number::kF32), x));
  EXPECT_EQ(found.best[0], 3);
  const Head zeros(100);
  EXPECT_EQ(Screen(zeros.As(Number::kF32), x).best, std::vector<int64_t>(20, 0));
}

TEST(HeadScreen, SizesFromTheSmallestToTheLargest) {
  for (const float row_size : {1e-30F, 1e-6F, 1.0F, 1e12F}) {
    Head head = RandomHead(600, 8);
    for (int64_t r = 0; r < head.rows; ++r)  // within a head rows differ a thousand times
      for (int64_t k = 0; k < kColumns; ++k)
        head.Row(r)[k] *= row_size * std::pow(10.0F, static_cast<float>(r % 4) - 3);
    for (const float input_size : {1e-15F, 1e-3F, 1e4F, 1e15F}) {
      std::vector<float> x = RandomInput(9, 9);
      for (float& v : x) v *= input_size;
      EXPECT_EQ(Screen(head.As(Number::kF32), x).best, FromAllLogits(head.As(Number::kF32), x))
          << row_size << " " << input_size;
    }
  }
}

// One row is far ahead: no row has to be read whole. Everything equal: all of them have to be, and once.
TEST(HeadScreen, ReadsWhatIsInDoubt) {
  Head head = RandomHead(1000, 10);
  std::vector<float> x = RandomInput(1, 11);
  for (int64_t k = 0; k < kColumns; ++k) head.Row(77)[k] = 5 * x[static_cast<size_t>(k)];
  EXPECT_EQ(Screen(head.As(Number::kF32), x).bytes, 0);
  const Head zeros(1000);
  const std::vector<float> two = RandomInput(2, 12);
  const Matrix whole = zeros.As(Number::kF32);
  EXPECT_EQ(Screen(whole, two).bytes, whole.bytes());
  EXPECT_LT(HeadScreen::Of(whole).bytes(), 0.29 * static_cast<double>(whole.bytes()));
}

TEST(HeadScreen, LeavesAloneWhatItCannotBound) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  const Head head = RandomHead(64, 13);
  EXPECT_FALSE(HeadScreen::Of(head.As(Number::kI8)).on());
  EXPECT_FALSE(HeadScreen::Of(head.As(Number::kF32, std::vector<float>(64, 0))).on());
  for (const float bad : {kInfinity, kNan, 1e16F}) {
    Head with = head;
    with.Row(50)[9] = bad;
    EXPECT_FALSE(HeadScreen::Of(with.As(Number::kF32)).on()) << bad;
  }
  const auto odd = Matrix::Pack(4, 33, Number::kF32, [](int64_t, float* to) { std::fill_n(to, 33, 1.0F); }, {});
  EXPECT_FALSE(HeadScreen::Of(odd).on());
  const Matrix whole = head.As(Number::kF32);
  const HeadScreen screen = HeadScreen::Of(whole);
  for (const float bad : {kInfinity, kNan, 1e21F}) {
    std::vector<float> x = RandomInput(2, 14);
    x[kColumns + 3] = bad;
    std::vector<int64_t> best(2);
    ScreenMemory memory;
    kernels::Workers workers(1);
    EXPECT_FALSE(screen.Likeliest(whole, x.data(), best, memory, workers)) << bad;
  }
}

}  // namespace
}  // namespace outrider::serve
