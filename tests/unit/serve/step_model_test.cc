#include "serve/step_model.h"

#include <gtest/gtest.h>

#include <random>

#include "serve/text_lengths.h"

namespace outrider::serve {
namespace {

constexpr sched::StepLimits kLimits{.decode_tokens = 32, .prefill_tokens = 64};
constexpr sched::StepFit kMachine{0.005, 0.002, 0.0018};

double Relative(double found, double expected) { return std::abs(found - expected) / expected; }

TEST(StepModel, TheFirstStepIsSharedByItsTokens) {
  StepModel model(kLimits);
  EXPECT_FALSE(model.fit().Known());
  model.Add(0, 0, 1);
  model.Add(3, 4, 0);
  EXPECT_FALSE(model.fit().Known());
  model.Add(2, 8, 0.5);
  EXPECT_DOUBLE_EQ(model.fit().text_s, 0.05);
  EXPECT_DOUBLE_EQ(model.fit().prompt_token_s, 0.05);
  EXPECT_EQ(model.fit().step_s, 0);
}

TEST(StepModel, AFirstTextAloneIsNotAllOfItsStep) {
  StepModel model(kLimits);
  model.Add(1, 0, 0.01);
  EXPECT_DOUBLE_EQ(model.fit().Seconds(1, 0), 0.01);
  EXPECT_LT(model.fit().text_s, 0.001);
  EXPECT_EQ(model.fit().prompt_token_s, 0);
}

TEST(StepModel, LearnsAMachineFromStepsOfAllKinds) {
  StepModel model(kLimits);
  std::mt19937_64 random(3);
  for (int i = 0; i < 2'000; ++i) {
    const auto texts = static_cast<int64_t>(random() % 33), prompt = static_cast<int64_t>(random() % 65);
    if (texts + prompt > 0) model.Add(texts, prompt, kMachine.Seconds(texts, prompt));
  }
  EXPECT_LT(Relative(model.fit().step_s, kMachine.step_s), 0.02);
  EXPECT_LT(Relative(model.fit().text_s, kMachine.text_s), 0.02);
  EXPECT_LT(Relative(model.fit().prompt_token_s, kMachine.prompt_token_s), 0.02);
}

// Steps bounded by the fit itself are all as long, by which a least-squares fit would take the time of a step for
// constant. Noise and the loop together neither make the steps swing nor leave the goal.
TEST(StepModel, AGoalThatBoundsTheStepsItLearnsFromIsKept) {
  for (const double factor : {0.3, 1.0, 3.0}) {  // the machine becomes so many times slower half way
    StepModel model(kLimits);
    std::mt19937_64 random(5);
    const auto uniform = [&random] { return static_cast<double>(random() >> 11) * 0x1p-53; };
    double late_s = 0, least = 1, most = 0;
    for (int i = 0; i < 1'200; ++i) {
      const int64_t texts = 6 + static_cast<int64_t>(random() % 4);
      const int64_t prompt = sched::PromptTokensWithin(model.fit(), 0.2, texts, kLimits);
      const double whole = kMachine.Seconds(texts, prompt) * (i < 600 ? 1 : factor);
      model.Add(texts, prompt, whole * (0.8 + 0.4 * uniform()));
      if (i < 1'000) continue;
      late_s += whole / 200;
      least = std::min(least, whole);
      most = std::max(most, whole);
    }
    if (factor > 1) {
      EXPECT_NEAR(late_s, sched::kGoalShare * 0.2, 0.02) << factor;
      EXPECT_LT(most - least, 0.5 * late_s) << factor;
    } else {
      EXPECT_LT(late_s, sched::kGoalShare * 0.2 + 0.02) << factor << ": the whole lane fits";
    }
  }
}

TEST(StepModel, OneLongStepMovesItLittle) {
  StepModel model(kLimits);
  for (int i = 0; i < 500; ++i) model.Add(8, 32, kMachine.Seconds(8, 32));
  const double before = model.fit().Seconds(8, 32);
  model.Add(8, 32, 100);
  EXPECT_LT(model.fit().Seconds(8, 32), 1.21 * before);
  for (int i = 0; i < 50; ++i) model.Add(8, 32, kMachine.Seconds(8, 32));
  EXPECT_LT(Relative(model.fit().Seconds(8, 32), before), 0.01);
}

TEST(StepModel, AFitGrowsFromNextToNothing) {
  StepModel model(kLimits);
  model.Add(1, 0, 1e-9);
  for (int i = 0; i < 150; ++i) model.Add(8, 32, 0.1);
  EXPECT_LT(Relative(model.fit().Seconds(8, 32), 0.1), 0.05);
}

TEST(TextLengths, CountTextsThatGoOn) {
  TextLengths lengths;
  lengths.Wrote(100);
  EXPECT_EQ(lengths.Mean(), 0);
  lengths.Ended();
  EXPECT_DOUBLE_EQ(lengths.Mean(), 100);
  lengths.Wrote(100);
  lengths.Ended();
  EXPECT_DOUBLE_EQ(lengths.Mean(), 100);
  for (int i = 0; i < 1'000; ++i) {
    lengths.Wrote(10);
    lengths.Ended();
  }
  EXPECT_NEAR(lengths.Mean(), 10, 0.01);
}

}  // namespace
}  // namespace outrider::serve
