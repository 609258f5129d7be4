#include "model/sample_texts.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "model/llama.h"

namespace outrider::model {
namespace {

using testing::HasSubstr;

constexpr int64_t kVocab = 40;

Config Small() {
  Config config;
  config.model_type = "llama";
  config.hidden_size = 24;
  config.layers = 3;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.ffn = 40;
  config.vocab = kVocab;
  config.max_positions = 64;
  config.windows = {0, 0, 0};
  config.qkv_bias = config.o_bias = config.mlp_bias = true;
  return config;
}

// Weights at which every part of the model matters.
Parameters Loud(const Config& config) {
  Parameters parameters = RandomParameters(config, 1);
  at::manual_seed(5);
  for (const NamedTensor& t : NamedTensors(config, parameters)) {
    const at::NoGradGuard no_grad;
    t.tensor->add_(at::randn(t.shape), t.shape.size() == 1 ? 0.3 : 0.25);
  }
  return parameters;
}

TextPlan Plan() {
  return {.prompts = {{1, 2, 3}, {4}},
          .turns = {{.end_ids = {5, 6, 7, 8}, .tail = {9, 10}}, {.end_ids = {5, 6, 7, 8}, .tail = {}}},
          .length = 30,
          .texts = 9,
          .seed = 11};
}

std::map<int64_t, SampledText> Sampled(const TextPlan& plan, const Sampling& sampling, const SamplingRun& run,
                                       const Config& config, const Parameters& parameters) {
  std::map<int64_t, SampledText> texts;
  const auto done = SampleTexts(config, parameters, plan, sampling, run, [&](const SampledText& text) {
    EXPECT_EQ(text.number, static_cast<int64_t>(texts.size())) << "texts come in order";
    texts.emplace(text.number, text);
    return true;
  });
  EXPECT_TRUE(done) << done.error().message;
  return texts;
}

// How far the logit of the token at `place` lies under the largest one of a pass over the tokens before it.
double ShortOfBest(const Config& config, const Parameters& parameters, const std::vector<int64_t>& ids, size_t place) {
  const std::vector<int64_t> before(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(place));
  const at::Tensor logits =
      Logits(config, parameters, HiddenStates(config, parameters, at::tensor(before, at::kLong).unsqueeze(0)))[0][-1];
  return logits.max().item<double>() - logits[ids[place]].item<double>();
}

TEST(SampleTexts, GreedyTextsAreThoseOfFullPasses) {
  const Config config = Small();
  const Parameters parameters = Loud(config);
  const at::NoGradGuard no_grad;
  for (const auto& [number, text] : Sampled(Plan(), {}, {.rows = 4, .window = 3}, config, parameters)) {
    size_t turns = 0, forced = number % 2 == 0 ? 3 : 1;
    for (size_t place = forced; place < text.ids.size(); ++place) {
      if (place < forced) continue;  // of a tail
      EXPECT_LT(ShortOfBest(config, parameters, text.ids, place), 1e-4) << "text " << number << ", place " << place;
      if (text.ids[place] >= 5 && text.ids[place] <= 8) {
        forced = place + 3;
        ++turns;
      }
    }
    EXPECT_EQ(static_cast<int64_t>(turns), text.turns);
  }
}

TEST(SampleTexts, ATextDoesNotDependOnWhatIsWrittenBesideIt) {
  const Config config = Small();
  const Parameters parameters = Loud(config);
  const Sampling sampling{.temperature = 1.3, .top_k = 30, .top_p = 0.95};
  const auto expected = Sampled(Plan(), sampling, {.rows = 1}, config, parameters);
  ASSERT_EQ(expected.size(), 9U);
  EXPECT_NE(expected.at(0).ids, expected.at(2).ids) << "equal prompts, other draws";
  for (const SamplingRun run : {SamplingRun{2, 1}, SamplingRun{5, 4}, SamplingRun{32, 16}}) {
    const auto found = Sampled(Plan(), sampling, run, config, parameters);
    ASSERT_EQ(found.size(), expected.size());
    for (const auto& [number, text] : expected) EXPECT_EQ(found.at(number).ids, text.ids) << run.rows << " rows";
  }
  TextPlan other = Plan();
  other.seed = 12;
  EXPECT_NE(Sampled(other, sampling, {.rows = 4}, config, parameters).at(0).ids, expected.at(0).ids);
}

TEST(SampleTexts, EachTurnHasItsTemperature) {
  const Config config = Small();
  const Parameters parameters = Loud(config);
  const at::NoGradGuard no_grad;
  TextPlan plan = Plan();
  plan.turns[1].temperature = 1e-4;
  int64_t greedy = 0, free = 0, wrong = 0;
  for (const auto& [number, text] : Sampled(plan, {.temperature = 3}, {.rows = 4}, config, parameters)) {
    size_t second = 0;  // place where the second turn begins
    for (size_t place = number % 2 == 0 ? 3 : 1; place < text.ids.size(); ++place) {
      if (second > 0 && place < second) continue;
      const double gap = ShortOfBest(config, parameters, text.ids, place);
      if (second == 0) {
        free += gap > 0 ? 1 : 0;
        if (text.ids[place] >= 5 && text.ids[place] <= 8) second = place + 3;
      } else {
        (gap < 0.01 ? greedy : wrong) += 1;  // a token 0.01 short is drawn once in e^100
      }
    }
  }
  EXPECT_GT(greedy, 5);
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(free, 5);
}

TEST(SampleTexts, TheCallbackEndsTheRun) {
  const Config config = Small();
  int64_t calls = 0;
  const auto done = SampleTexts(config, Loud(config), Plan(), {.temperature = 1}, {.rows = 4},
                                [&](const SampledText&) { return ++calls < 3; });
  EXPECT_TRUE(done);
  EXPECT_EQ(calls, 3);
}

TEST(SampleTexts, DrawsFollowTheSharesThatAreKept) {
  const at::Tensor row = at::tensor({1.0F, 3.0F, 2.0F, 3.0F, 0.0F}).log();  // shares 1, 3, 2, 3, 0 of 9
  constexpr int64_t kDraws = 900;
  const at::Tensor logits = row.unsqueeze(0).expand({kDraws, 5});
  std::vector<float> grid;
  for (int64_t i = 0; i < kDraws; ++i) grid.push_back((static_cast<float>(i) + 0.5F) / kDraws);
  const at::Tensor uniform = at::tensor(grid);
  const auto counts = [&](const Sampling& sampling) {
    std::vector<int64_t> out(5);
    const at::Tensor ids = DrawTokens(logits, sampling, uniform);
    for (int64_t i = 0; i < kDraws; ++i) ++out[static_cast<size_t>(ids[i].item<int64_t>())];
    return out;
  };
  EXPECT_EQ(counts({.temperature = 1}), (std::vector<int64_t>{100, 300, 200, 300, 0}));
  EXPECT_EQ(counts({.temperature = 1, .top_p = 0.7}), (std::vector<int64_t>{0, 337, 225, 338, 0}));
  EXPECT_EQ(counts({.temperature = 1, .top_k = 2}), (std::vector<int64_t>{0, 450, 0, 450, 0}));
  const std::vector<int64_t> one = counts({.temperature = 1, .top_k = 3, .top_p = 1e-9});
  EXPECT_EQ(one[1] + one[3], kDraws) << "the most likely is always kept";
  EXPECT_TRUE(one[1] == 0 || one[3] == 0);
  EXPECT_EQ(counts({}), (std::vector<int64_t>{0, kDraws, 0, 0, 0}));
}

TEST(SampleTexts, BadInputIsNamed) {
  const Config config = Small();
  const Parameters parameters = Loud(config);
  const auto message = [&](TextPlan plan, const Config& shape) {
    const auto done = SampleTexts(shape, parameters, plan, {}, {}, [](const SampledText&) { return true; });
    return done ? std::string("none") : done.error().code + ": " + done.error().message;
  };
  TextPlan plan = Plan();
  plan.prompts[1] = {kVocab};
  EXPECT_THAT(message(plan, config), HasSubstr("E_PROMPT: prompt: found id 40, expected 0 to 39"));
  plan = Plan();
  plan.turns[0].tail = {-1};
  EXPECT_THAT(message(plan, config), HasSubstr("E_PROMPT: tail: found id -1"));
  plan = Plan();
  plan.length = 65;
  EXPECT_THAT(message(plan, config), HasSubstr("E_OPTION: length: found 65 tokens, expected 2 to 64"));
  Config windowed = config;
  windowed.windows[1] = 12;
  EXPECT_THAT(message(Plan(), windowed), HasSubstr("expected 2 to 12"));
  plan = Plan();
  plan.length = 3;
  EXPECT_THAT(message(plan, config), HasSubstr("E_PROMPT: prompt: found 3 tokens, expected 1 to 2"));
}

}  // namespace
}  // namespace outrider::model
