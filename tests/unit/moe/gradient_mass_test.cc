// First-order importance of channels, and experts made with it.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "moe/ffn_hooks.h"
#include "moe/gradient_mass.h"
#include "moe/losses.h"
#include "refactor_support.h"

namespace outrider::moe {
namespace {

// Makes one token's channels of one layer larger by a factor each.
class Scaling : public model::FfnHook {
 public:
  Scaling(int64_t layer, int64_t token, int64_t channel, double factor)
      : layer_(layer), token_(token), channel_(channel), factor_(factor) {}
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    if (layer != layer_) return h;
    const at::Tensor out = h.clone();
    out[token_][channel_] *= factor_;
    return out;
  }

 private:
  int64_t layer_, token_, channel_;
  double factor_;
};

RoutedModel TinyModel() {
  RoutedModel model;
  model.config.model_type = "llama";
  model.config.hidden_size = 16;
  model.config.layers = 2;
  model.config.heads = 2;
  model.config.kv_heads = 2;
  model.config.head_dim = 8;
  model.config.ffn = 12;
  model.config.vocab = 30;
  model.config.max_positions = 16;
  model.config.tied = true;
  model.config.windows.assign(2, 0);
  model.masters = model::RandomParameters(model.config, 3);
  for (const model::NamedTensor& t : model::NamedTensors(model.config, model.masters)) {
    *t.tensor = (t.shape.size() == 2 ? *t.tensor * 12 : *t.tensor).to(at::kDouble);
  }
  model.masters.head = model.masters.embed;
  return model;
}

TokenBatch TinyBatch() {
  const at::Tensor ids = at::remainder(at::arange(18, at::kLong) * 7, 30).view({2, 9});
  return {ids.slice(1, 0, 8).contiguous(), ids.slice(1, 1).contiguous(), {}, 0};
}

double LossOf(const RoutedModel& model, const TokenBatch& batch, model::FfnHook& hook) {
  const at::Tensor hidden = model::HiddenStates(model.config, model.masters, batch.inputs, &hook);
  const at::Tensor logits = hidden.flatten(0, 1).matmul(model.masters.head.t());
  return at::nll_loss(at::log_softmax(logits, -1), batch.targets.flatten(), {}, at::Reduction::Sum).item<double>();
}

TEST(GradientMass, IsTheChangeOfTheLossWhenAChannelGrows) {
  const at::NoGradGuard no_grad;
  const RoutedModel model = TinyModel();
  const TokenBatch batch = TinyBatch();
  GradientProbes probes;
  const std::vector<at::Tensor> mass = GradientMass(model, model.masters, batch, 5, probes);
  ASSERT_EQ(mass.size(), 2);
  const at::Tensor sums = mass[0].sum(-1) + mass[1].sum(-1);
  EXPECT_TRUE(at::allclose(sums, at::full_like(sums, 2)));
  const auto loss = [&](int64_t layer, int64_t token, int64_t channel, double factor) {
    Scaling hook(layer, token, channel, factor);
    return LossOf(model, batch, hook);
  };
  // The scale of a token is unknown, ratios of its channels are not. Norms are computed in float32: no smaller step.
  for (const int64_t token : {0, 6, 15}) {
    std::vector<double> change, found;
    for (const int64_t layer : {0, 1}) {
      for (int64_t c = 0; c < 12; ++c) {
        change.push_back(std::abs(loss(layer, token, c, 1 + 1e-2) - loss(layer, token, c, 1 - 1e-2)));
        found.push_back(mass[static_cast<size_t>(layer)][token][c].item<double>());
      }
    }
    const double scale = std::accumulate(change.begin(), change.end(), 0.0) / 2;
    for (size_t i = 0; i < change.size(); ++i) EXPECT_NEAR(found[i], change[i] / scale, 1e-3) << token << " " << i;
  }
}

// One token's channels of all layers, each times a factor.
class Weighing : public model::FfnHook {
 public:
  Weighing(int64_t token, std::vector<at::Tensor> factors) : token_(token), factors_(std::move(factors)) {}
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    const at::Tensor out = h.clone();
    out[token_] *= factors_[static_cast<size_t>(layer)];
    return out;
  }

 private:
  int64_t token_;
  std::vector<at::Tensor> factors_;
};

TEST(GradientMass, ProbesBehindAMaskTellWhatChannelsWithoutItWouldChange) {
  const RoutedModel model = TinyModel();
  const TokenBatch batch = TinyBatch();
  GradientProbes probes;
  const auto& leaves = probes.Take(2, {batch.Tokens(), 12}, model.masters.embed.options());
  const int64_t token = 5;
  std::vector<at::Tensor> masks(2, at::ones({12}, at::kDouble));
  for (at::Tensor& mask : masks) mask.slice(0, 0, 12, 2).zero_();
  Weighing masking(token, masks);
  ProbingHook hook(leaves, &masking);
  const at::Tensor hidden = model::HiddenStates(model.config, model.masters, batch.inputs, &hook);
  ChunkedTokenLoss(hidden.flatten(0, 1), model.masters.head, batch.targets.flatten(), {}, 4).objective.backward();
  const at::NoGradGuard no_grad;
  for (size_t l = 0; l < 2; ++l) {
    for (int64_t c = 0; c < 12; ++c) {
      const auto loss = [&](double step) {
        std::vector<at::Tensor> factors = {masks[0].clone(), masks[1].clone()};
        factors[l][c] += step;
        Weighing moved(token, factors);
        return LossOf(model, batch, moved);
      };
      const double change = (loss(1e-2) - loss(-1e-2)) / 2e-2;
      const double found = (hook.kept[l][token][c] * leaves[l].grad()[token][c]).item<double>();
      EXPECT_NEAR(found, change, 1e-3 * std::max(1.0, std::abs(change))) << l << " " << c;
    }
  }
}

// Three experts of the tiny model, weights in `dtype` that want gradients.
RoutedModel MaskedModel(at::ScalarType dtype, MaskForm form) {
  RoutedModel model = TinyModel();
  for (const model::NamedTensor& t : model::NamedTensors(model.config, model.masters)) {
    *t.tensor = t.tensor->to(dtype).requires_grad_();
  }
  model.masters.head = model.masters.embed;
  model.dtype = dtype;
  model.mask_form = form;
  model.masks = Masks(3, 2, 12);
  for (int64_t l = 0; l < 2; ++l) {
    model.masks.SetExpert(l, 0, std::vector<int64_t>{0, 1, 2, 3, 4, 5});
    model.masks.SetExpert(l, 1, std::vector<int64_t>{0, 2, 4, 6, 8, 10});
    model.masks.SetExpert(l, 2, std::vector<int64_t>{0, 6, 7, 8, 9 + l});
  }
  return model;
}

struct Pass {
  at::Tensor share;                   // [T, N] of the mass
  std::vector<at::Tensor> gradients;  // of the weights
};

void RunPass(const RoutedModel& model, model::FfnHook& hook) {
  const TokenBatch batch = TinyBatch();
  const at::Tensor hidden = model::HiddenStates(model.config, model.masters, batch.inputs, &hook);
  ChunkedTokenLoss(hidden.flatten(0, 1), model.masters.head, batch.targets.flatten(), {}, 4).objective.backward();
}

std::vector<at::Tensor> Gradients(RoutedModel& model) {
  std::vector<at::Tensor> found;
  for (const model::NamedTensor& t : model::NamedTensors(model.config, model.masters)) {
    found.push_back(t.tensor->grad());
  }
  return found;
}

at::Tensor SomeIds() { return at::remainder(at::arange(16, at::kLong) * 5, 3); }

Pass Measured(at::ScalarType dtype, MaskForm form) {
  RoutedModel model = MaskedModel(dtype, form);
  const RoutedModel::Masking masking = model.Prepare();
  KeptMass kept(model, masking);
  RunPass(model, kept.Hook(SomeIds()));
  const auto [mass, total] = kept.Sums();
  EXPECT_EQ(mass.scalar_type(), at::kFloat);
  EXPECT_EQ(total.sizes(), at::IntArrayRef({16, 1}));
  return {mass / total, Gradients(model)};
}

// The same in fp32 from whole h and whole gradients.
Pass Expected(at::ScalarType dtype) {
  RoutedModel model = MaskedModel(dtype, MaskForm::kLean);
  const RoutedModel::Masking masking = model.Prepare();
  GradientProbes probes;
  const auto& leaves = probes.Take(2, {16, 12}, model.masters.embed.options());
  const auto masked = model.Hook(masking, SomeIds());
  ProbingHook hook(leaves, masked.get());
  RunPass(model, hook);
  const at::NoGradGuard no_grad;
  at::Tensor kept = at::zeros({16, 3}), total = at::zeros({16, 1});
  for (size_t l = 0; l < 2; ++l) {
    const at::Tensor mass = TakeMass(hook.kept[l], leaves[l]);
    kept += mass.matmul(MaskMatrix(model.masks, static_cast<int64_t>(l), at::kFloat, at::kCPU).t());
    total += mass.sum(-1, true);
  }
  return {kept / total, Gradients(model)};
}

TEST(KeptMass, IsWhatTheExpertsKeepAndChangesNoGradient) {
  const Pass expected = Expected(at::kFloat), lean = Measured(at::kFloat, MaskForm::kLean);
  const Pass operators = Measured(at::kFloat, MaskForm::kOperators);
  EXPECT_TRUE(at::allclose(lean.share, expected.share, 1e-5, 1e-6));
  EXPECT_TRUE(at::equal(lean.share, operators.share)) << "two forms, the same bits";
  EXPECT_GT(expected.share.max().item<double>(), expected.share.min().item<double>() + 0.1);
  for (size_t i = 0; i < expected.gradients.size(); ++i) {
    EXPECT_TRUE(at::equal(lean.gradients[i], expected.gradients[i])) << i;
    EXPECT_TRUE(at::equal(operators.gradients[i], expected.gradients[i])) << i;
  }
}

TEST(KeptMass, InANarrowDtypeDiffersByItsRoundingAlone) {
  const Pass expected = Expected(at::kBFloat16), lean = Measured(at::kBFloat16, MaskForm::kLean);
  EXPECT_TRUE(at::equal(lean.share, Measured(at::kBFloat16, MaskForm::kOperators).share));
  EXPECT_LT((lean.share - expected.share).abs().max().item<double>(), 0.004) << "one rounding to 8 bits";
}

TEST(KeptMass, RowsBehindTheMasksAreATotalAndZeros) {
  const at::Tensor rows = WithTotal(at::eye(4).slice(0, 0, 3));
  ASSERT_EQ(rows.sizes(), at::IntArrayRef({8, 4}));
  EXPECT_TRUE(at::equal(rows.slice(0, 0, 3), at::eye(4).slice(0, 0, 3)));
  EXPECT_TRUE(at::equal(rows[3], at::ones({4})));
  EXPECT_EQ(rows.slice(0, 4).abs().sum().item<double>(), 0);
  EXPECT_EQ(WithTotal(at::ones({8, 4})).size(0), 16);
}

TEST_F(RefactorTest, ExpertsByGradientAndAcrossLayersKeepTheirCount) {
  for (const json& kind : {json{{"coverage.mass", "gradient"}}, json{{"experts.ratio", "global"}},
                           json{{"coverage.mass", "gradient"}, {"experts.ratio", "global"}}}) {
    json options = kind;
    options.update({{"rounds", 1}, {"router.steps", 30}, {"expert.steps", 8}});
    const std::string name = "by_mass" + kind.dump();
    const json result = Refactored(name, options);
    ASSERT_FALSE(result.contains("error")) << result["error"];
    const json experts = json::parse(Slurp(root_ + "/" + name + "/experts.json"));
    std::vector<int64_t> active(4, 0);
    std::set<int64_t> sizes;
    for (const json& layer : experts["layers"]) {
      for (size_t i = 0; i < 4; ++i) active[i] += layer["active"][i].get<int64_t>();
      sizes.insert(layer["active"][0].get<int64_t>());
    }
    EXPECT_EQ(active, std::vector<int64_t>(4, 3 * 44));
    EXPECT_EQ(sizes.size() > 1, kind.contains("experts.ratio"));
    EXPECT_LT(Log(name)[29]["loss"], Log(name)[0]["loss"]) << "router";
    EXPECT_GE(experts["coverage"].back().get<double>(), experts["coverage"].front().get<double>());
  }
}

}  // namespace
}  // namespace outrider::moe
