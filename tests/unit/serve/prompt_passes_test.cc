#include "serve/prompt_passes.h"

#include <gtest/gtest.h>

#include <random>

namespace outrider::serve {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

TEST(PromptPasses, TheSetupIsWhatIsLeftWithoutTokens) {
  PromptPasses passes;
  std::mt19937 random(3);
  for (int i = 0; i < 12; ++i) {
    const int64_t tokens = i % 2 == 0 ? 512 : 1 + random() % 512;
    const double noise = 0.95 + 0.1 * static_cast<double>(random() % 1000) / 1000;
    passes.AddPass(tokens, noise * (0.009 + 12e-6 * static_cast<double>(tokens)));
  }
  EXPECT_NEAR(passes.Measured().setup_s, 0.009, 0.0015);
  for (int i = 0; i < 100; ++i) passes.AddPass(512, 0.009 + 12e-6 * 512);
  EXPECT_NEAR(passes.Measured().setup_s, 0.009, 0.0015) << "passes all alike tell nothing of it";
}

TEST(PromptPasses, ThereIsNoneWhereTokensAreAllOfTheTimeOrNothingIsKnown) {
  PromptPasses passes;
  EXPECT_EQ(passes.Measured().setup_s, 0);
  passes.AddPass(512, 0.02);
  EXPECT_EQ(passes.Measured().setup_s, 0) << "one size";
  for (const int64_t tokens : {100, 200, 300}) passes.AddPass(tokens, 39.0625e-6 * static_cast<double>(tokens));
  EXPECT_NEAR(passes.Measured().setup_s, 0, 1e-9);
  PromptPasses together;
  for (int i = 0; i < 5; ++i) together.AddPass(100 * i, 0);
  EXPECT_EQ(together.Measured().setup_s, 0) << "no pass of their own";
}

TEST(PromptPasses, ComplementWhatStepsTakeTogether) {
  PromptPasses passes;
  const sched::StepFit together{0.004, 0.0002, 0.001};
  EXPECT_EQ(passes.Complete(together).prompt_token_s, 0.001) << "none so far";
  passes.AddPass(100, 0.011);
  EXPECT_DOUBLE_EQ(passes.Complete(together).prompt_token_s, 0.00011) << "of one pass all is said of its tokens";
  passes.AddPass(300, 0.013);
  const sched::StepFit found = passes.Complete(together);
  EXPECT_EQ(found.step_s, 0.004);
  EXPECT_EQ(found.text_s, 0.0002);
  EXPECT_NEAR(found.prompt_token_s, 0.00001, 1e-12);
  EXPECT_NEAR(found.setup_s, 0.010, 1e-12);
}

TEST(PromptPasses, TheRestOfStepsIsTimedBesideThem) {
  PromptPasses passes;
  passes.AddRest(-1);
  EXPECT_EQ(passes.Measured().step_s, 0) << "clocks may stand still";
  for (int i = 0; i < 200; ++i) passes.AddRest(0.008);
  EXPECT_NEAR(passes.Measured().step_s, 0.008, 1e-6);
}

// Passes that are all alike do not say what of them is setup, but how long they take.
TEST(PromptPasses, AMachineThatBecomesSlowerIsSeenAllTheSame) {
  PromptPasses passes;
  for (int i = 0; i < 100; ++i) passes.AddPass(i % 2 == 0 ? 512 : 100, i % 2 == 0 ? 0.015144 : 0.0102);
  for (int i = 0; i < 400; ++i) passes.AddPass(512, 3 * 0.015144);
  EXPECT_NEAR(passes.Complete({}).PromptSeconds(512), 3 * 0.015144, 0.001);
}

TEST(PromptPasses, OneLongPassChangesLittle) {
  PromptPasses passes;
  for (int i = 0; i < 100; ++i) passes.AddPass(i % 2 == 0 ? 512 : 100, i % 2 == 0 ? 0.015144 : 0.0102);
  passes.AddPass(100, 0.4);
  EXPECT_NEAR(passes.Measured().setup_s, 0.009, 0.0008);
}

TEST(PromptPasses, ArrivalsCountOverAllTimeWithoutThem) {
  PromptPasses passes;
  EXPECT_EQ(passes.Measured().prompts_per_s, 0);
  for (int64_t i = 1; i <= 40; ++i) passes.Arrived(2, i * kSecond);
  EXPECT_NEAR(passes.Measured().prompts_per_s, 2, 0.01);
  passes.Arrived(0, 44 * kSecond);
  EXPECT_LT(passes.Measured().prompts_per_s, 0.6) << "two half-lives without one";
  for (int64_t i = 1; i <= 5; ++i) passes.Arrived(10, (3600 + i) * kSecond);
  EXPECT_GT(passes.Measured().prompts_per_s, 4) << "an hour of idling is soon forgotten";
}

}  // namespace
}  // namespace outrider::serve
