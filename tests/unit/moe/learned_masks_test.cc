// Masks that the loss moves.

#include <gmock/gmock.h>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "moe/ffn_hooks.h"
#include "moe/learned_masks.h"
#include "refactor_support.h"

namespace outrider::moe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// One layer of five channels, two experts of two channels each; channel 4 is a sink.
CoverageExperts Start() {
  CoverageExperts start;
  start.masks = Masks(2, 1, 5);
  start.masks.SetExpert(0, 0, std::vector<int64_t>{0, 4});
  start.masks.SetExpert(0, 1, std::vector<int64_t>{2, 4});
  start.scores = {{{4, 2, 1, 1, 100}}, {{0, 1, 2, 1, 0}}};
  start.sinks = {{4}};
  return start;
}

at::Tensor Row(std::vector<float> values) { return at::tensor(values).view({1, -1}); }

TEST(LearnedMasks, ScoresMoveByHandComputedSteps) {
  LearnedMasks learned(Start(), at::kCPU);
  const at::Tensor scores = learned.State()[0].tensor;
  EXPECT_TRUE(at::allclose(scores[0], at::cat({Row({2, 1, 0.5, 0.5, 50}), Row({0, 1, 2, 1, 0})})));
  EXPECT_EQ(learned.Choose(Start().masks), Start().masks);
  // A gradient above 0: the loss falls where the channel is taken away.
  learned.Slopes()[0].mutable_grad() = at::cat({Row({8, -4, 0, 4, 9}), Row({0, 0, 0, 0, 0})});
  learned.Step(0.5);
  EXPECT_FALSE(learned.Slopes()[0].grad().defined());
  EXPECT_TRUE(at::allclose(scores[0], at::cat({Row({1, 1.5, 0.5, 0, 48.875}), Row({0, 1, 2, 1, 0})})));
  EXPECT_THAT(learned.Choose(Start().masks).ChannelsOf(0, 0), ElementsAre(1, 4));
  // mean = 0.9 * 0.1 * (8, -4, 0, 4) + 0.1 * (0, 0, 4, 0): sizes 0.72, 0.36, 0.4, 0.36 with mean 0.46.
  learned.Slopes()[0].mutable_grad() = at::cat({Row({0, 0, 4, 0, 0}), Row({0, 1, 3, 0, 0})});
  learned.Step(0.46);
  EXPECT_TRUE(at::allclose(scores[0][0].slice(0, 0, 4), at::tensor({0.28F, 1.86F, 0.1F, -0.36F})));
  EXPECT_TRUE(at::allclose(scores[0][1].slice(0, 0, 4), at::tensor({0.F, 0.54F, 0.62F, 1.F})));
  const Masks chosen = learned.Choose(Start().masks);
  EXPECT_THAT(chosen.ChannelsOf(0, 0), ElementsAre(1, 4));
  EXPECT_THAT(chosen.ChannelsOf(0, 1), ElementsAre(3, 4)) << "a sink stays, whatever its score";
  EXPECT_EQ(chosen.Gained(Start().masks), 2);
}

TEST(LearnedMasks, EveryChannelOfTheTokensExpertGetsItsGradient) {
  const at::Tensor masks = at::tensor({1.F, 0.F, 1.F, 0.F, 1.F, 1.F}).view({2, 3});
  const at::Tensor values = at::tensor({1.F, 2.F, 3.F, 4.F, 5.F, 6.F, -1.F, 0.5F, 2.F}).view({3, 3});
  const at::Tensor factors = at::tensor({1.F, -1.F, 2.F, 3.F, 1.F, 0.F, 2.F, 2.F, 2.F}).view({3, 3});
  for (const bool routed : {true, false}) {
    const int64_t experts = routed ? 2 : 1;
    const at::Tensor ids = routed ? at::tensor({1, 0, 1}, at::kLong) : at::Tensor();
    const at::Tensor own = masks.slice(0, 0, experts);
    at::Tensor h = values.clone().requires_grad_(), plain = values.clone().requires_grad_();
    at::Tensor slopes = at::zeros({experts, 3}).requires_grad_();
    MaskingHook with({own}, {}, ids, MaskForm::kLean, {slopes}), without({own}, {}, ids, MaskForm::kLean);
    const at::Tensor masked = with.OnHidden(0, h), expected = without.OnHidden(0, plain);
    EXPECT_TRUE(at::equal(masked, expected));
    (masked * factors).sum().backward();
    (expected * factors).sum().backward();
    EXPECT_TRUE(at::equal(h.grad(), plain.grad()));
    const at::Tensor each = values * factors;
    const at::Tensor by_hand = routed ? at::stack({each[1], each[0] + each[2]}) : each.sum(0, true);
    EXPECT_TRUE(at::allclose(slopes.grad(), by_hand));
  }
}

TEST(LearnedMasks, TheGradientAddsUpInFloatUnderBfloat16) {
  const at::Tensor h = at::ones({300, 1}, at::kBFloat16).requires_grad_();
  at::Tensor slopes = at::zeros({1, 1}).requires_grad_();
  MaskingHook hook({at::zeros({1, 1}, at::kBFloat16)}, {}, {}, MaskForm::kLean, {slopes});
  for (int part = 0; part < 3; ++part) hook.OnHidden(0, h).sum().backward();
  EXPECT_EQ(slopes.grad().item<float>(), 900);
}

// y = sum of channels 0 to 3 of h, and the start statistic favours channels 4 to 7, which do nothing.
TEST(LearnedMasks, AWrongStartIsLeft) {
  CoverageExperts start;
  start.masks = Masks(1, 1, 8);
  start.masks.SetExpert(0, 0, std::vector<int64_t>{4, 5, 6, 7});
  start.scores = {{{1, 1, 1, 1, 2, 2, 2, 2}}};
  start.sinks = {{}};
  LearnedMasks learned(start, at::kCPU);
  Masks masks = start.masks;
  const at::Tensor h = at::sin(at::arange(64 * 8).to(at::kFloat)).view({64, 8});
  const at::Tensor useful = at::tensor({1.F, 1.F, 1.F, 1.F, 0.F, 0.F, 0.F, 0.F});
  const at::Tensor target = (h * useful).sum(-1);
  std::vector<double> losses;
  for (int step = 0; step < 20; ++step) {
    std::vector<float> row(8, 0);
    for (const int64_t c : masks.ChannelsOf(0, 0)) row[static_cast<size_t>(c)] = 1;
    MaskingHook masking({Row(row)}, {}, {}, MaskForm::kLean, learned.Slopes());
    const at::Tensor output = (masking.OnHidden(0, h.clone().requires_grad_()) * useful).sum(-1);
    const at::Tensor loss = (output - target).square().mean();
    loss.backward();
    losses.push_back(loss.item<double>());
    learned.Step(0.1);
    masks = learned.Choose(masks);
  }
  EXPECT_GT(losses.front(), 0.5);
  EXPECT_EQ(losses.back(), 0);
  EXPECT_THAT(masks.ChannelsOf(0, 0), ElementsAre(0, 1, 2, 3));
}

const json kLearned = {{"experts.learned", 0.5}, {"experts.learned_every", 3}, {"experts.learned_rate", 0.2}};

json With(json options, const json& more) {
  options.update(more);
  return options;
}

TEST_F(RefactorTest, LearnedMasksKeepTheirCountsMoveAndThenStay) {
  for (const json& kind :
       {json{{"experts.count", 4}}, json{{"experts.ratio", "global"}},
        json{{"experts.kind", "static"}, {"experts.statistic", "coverage"}, {"routing.kind", "none"}}}) {
    const json options = With(kind, {{"rounds", 2}, {"router.steps", 3}, {"expert.steps", 10}});
    const std::string off = "off" + kind.dump(), on = "on" + kind.dump();
    const json fixed = Refactored(off, options), learned = Refactored(on, With(options, kLearned));
    ASSERT_FALSE(learned.contains("error")) << learned["error"];
    const json before = json::parse(Slurp(root_ + "/" + off + "/experts.json"));
    const json after = json::parse(Slurp(root_ + "/" + on + "/experts.json"));
    EXPECT_NE(before["hash"], after["hash"]);
    EXPECT_EQ(before["coverage"], after["coverage"]);
    for (size_t l = 0; l < 3; ++l) EXPECT_EQ(before["layers"][l]["active"], after["layers"][l]["active"]);
    int64_t step = 0, moved = 0;
    for (const json& line : Log(on)) {
      if (line["stage"] != "expert") continue;
      ++step;
      if (line.contains("moved")) EXPECT_TRUE(step == 3 || step == 6 || step == 9 || step == 10) << step;
      moved += line.value("moved", int64_t{0});
    }
    EXPECT_GT(moved, 0);
    // Up to the first new masks nothing differs.
    const json left = Log(on), right = Log(off);
    for (size_t i = 0; i == 0 || !left[i - 1].contains("moved"); ++i) {
      EXPECT_EQ(left[i]["loss"], right[i]["loss"]) << i;
      EXPECT_EQ(left[i]["gradient_norm"], right[i]["gradient_norm"]) << i;
    }
  }
}

TEST_F(RefactorTest, AStoppedRunWithLearnedMasksGoesOnWithTheSameBits) {
  const json options =
      With(kLearned, {{"rounds", 2}, {"router.steps", 2}, {"expert.steps", 8}, {"router.last_steps", 2}});
  const json whole = Refactored("learned_whole", options);
  ASSERT_FALSE(whole.contains("error")) << whole["error"];
  for (const int64_t stop : {5, 7, 12, 15}) {
    const std::string name = "learned_stopped" + std::to_string(stop);
    EXPECT_EQ(Refactored(name, With(options, {{"steps_max", stop}}))["position"], stop);
    const json resumed = Refactored(name, options);
    ASSERT_FALSE(resumed.contains("error")) << resumed["error"];
    EXPECT_EQ(resumed["eval"], whole["eval"]) << "stopped at " << stop;
    for (const char* file : {"experts.json", "model/model.safetensors", "model/outrider_masks.safetensors",
                             "model/outrider_router.safetensors"}) {
      EXPECT_EQ(Slurp(root_ + "/" + name + "/" + file), Slurp(root_ + "/learned_whole/" + file)) << file;
    }
  }
}

TEST_F(RefactorTest, LearnedMasksRefuseWhatTheyDoNotGoWith) {
  const auto error = [](const json& changes) {
    return Refactored("refused", With(kLearned, changes)).value("error", std::string());
  };
  EXPECT_THAT(error({{"coexec", true}}), HasSubstr("not co-executed"));
  EXPECT_THAT(error({{"routing.kind", "layerwise"}}), HasSubstr("experts.learned"));
  EXPECT_THAT(error({{"experts.kind", "random"}}), HasSubstr("expected experts.kind coverage"));
  EXPECT_THAT(error({{"experts.kind", "static"}, {"experts.statistic", "best"}, {"routing.kind", "none"}}),
              HasSubstr("experts.statistic coverage"));
  EXPECT_THAT(error({{"experts.learned", 1.5}}), HasSubstr("at most 1"));
}

}  // namespace
}  // namespace outrider::moe
