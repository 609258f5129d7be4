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
  const auto& leaves = probes.Take(model.config, batch.Tokens(), model.masters.embed.options());
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
