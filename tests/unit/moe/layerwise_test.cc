// A model whose layers choose their experts themselves, against the same computed step by step.

#include "moe/layerwise.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "model/checkpoint.h"
#include "moe/experts.h"

namespace outrider::moe {
namespace {

constexpr int64_t kLayers = 3, kHidden = 16, kChannels = 24, kSequence = 7;

RoutedModel SomeModel(int64_t experts) {
  RoutedModel model;
  model.config.model_type = "llama";
  model.config.hidden_size = kHidden;
  model.config.layers = kLayers;
  model.config.heads = 4;
  model.config.kv_heads = 2;
  model.config.head_dim = 4;
  model.config.ffn = kChannels;
  model.config.vocab = 40;
  model.config.max_positions = 32;
  model.config.windows = {0, 0, 0};
  model.masters = model::RandomParameters(model.config, 1);
  model.masks = SelectRandom(experts, kLayers, kChannels, 12, 9);
  model.routing = Routing::kLayerwise;
  return model;
}

LayerRouter SomeRouter(int64_t experts, int64_t top) {
  at::manual_seed(8);
  return LayerRouter::Gated(at::randn({kLayers, experts, kHidden}), at::randn({kLayers, experts, kHidden}),
                            at::randn({kLayers, experts}), at::randn({kLayers, experts}), top);
}

TokenBatch SomeBatch(int64_t texts) {
  at::manual_seed(3);
  return {at::randint(40, {texts, kSequence}, at::kLong), at::Tensor(), std::vector<Place>(static_cast<size_t>(texts)),
          0};
}

// Keeps what goes into and comes out of the first half of each FFN, and multiplies h by given masks.
class Replay : public model::FfnHook {
 public:
  explicit Replay(std::vector<at::Tensor> rows) : rows_(std::move(rows)) {}
  void OnInput(int64_t layer, const at::Tensor& x) override {
    EXPECT_EQ(layer, static_cast<int64_t>(inputs.size()));
    inputs.push_back(x.detach());
  }
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    hidden.push_back(h.detach());
    return h * rows_.at(static_cast<size_t>(layer));
  }
  std::vector<at::Tensor> inputs, hidden;

 private:
  std::vector<at::Tensor> rows_;
};

// 1 where a token may use a channel: the union of the masks of its experts.
std::vector<at::Tensor> RowsOf(const Masks& masks, const std::vector<at::Tensor>& ids) {
  std::vector<at::Tensor> rows;
  for (int64_t l = 0; l < masks.layers(); ++l) {
    at::Tensor row = at::zeros({ids[static_cast<size_t>(l)].size(0), masks.channels()});
    for (int64_t t = 0; t < row.size(0); ++t) {
      for (int64_t k = 0; k < ids[0].size(1); ++k) {
        const auto expert = ids[static_cast<size_t>(l)][t][k].item<int64_t>();
        for (const int64_t c : masks.ChannelsOf(l, expert)) row[t][c] = 1;
      }
    }
    rows.push_back(row);
  }
  return rows;
}

TEST(LayerRoutingHook, TokensUseTheUnionOfTheirExpertsOfEachLayer) {
  for (const int64_t top : {1, 2, 3}) {
    RoutedModel model = SomeModel(5);
    model.layer_router = SomeRouter(5, top);
    const RoutedModel::Masking masking = model.Prepare();
    const TokenBatch batch = SomeBatch(2);
    std::vector<at::Tensor> chosen;
    const auto hook = model.Hook(masking, model.ExpertIds(batch), &chosen);
    const at::NoGradGuard no_grad;
    const at::Tensor mine = model::HiddenStates(model.config, model.masters, batch.inputs, hook.get());
    ASSERT_EQ(chosen.size(), kLayers);
    Replay replay(RowsOf(model.masks, chosen));
    EXPECT_TRUE(
        at::allclose(mine, model::HiddenStates(model.config, model.masters, batch.inputs, &replay), 1e-5, 1e-6));
    for (int64_t l = 0; l < kLayers; ++l) {
      const auto at_layer = static_cast<size_t>(l);
      const at::Tensor logits = model.layer_router->Logits(l, replay.inputs[at_layer]);
      EXPECT_TRUE(at::equal(chosen[at_layer].select(1, 0), logits.argmax(-1)));
      EXPECT_EQ(chosen[at_layer].size(1), top);
      const at::Tensor h = at::silu(replay.inputs[at_layer].matmul(model.masters.layers[at_layer].gate.t())) *
                           replay.inputs[at_layer].matmul(model.masters.layers[at_layer].up.t());
      EXPECT_TRUE(at::allclose(h, replay.hidden[at_layer], 1e-4, 1e-6)) << "OnInput sees what goes into gate and up";
    }
  }
}

TEST(LayerRoutingHook, GradientsReachTheModelAndNotTheRouter) {
  RoutedModel model = SomeModel(4);
  model.layer_router = SomeRouter(4, 2);
  for (const NamedTensor& p : model.layer_router->Parameters()) p.tensor.requires_grad_();
  model.masters.layers[0].gate.requires_grad_();
  const RoutedModel::Masking masking = model.Prepare();
  const auto hook = model.Hook(masking, {});
  model::HiddenStates(model.config, model.masters, SomeBatch(1).inputs, hook.get()).sum().backward();
  EXPECT_GT(model.masters.layers[0].gate.grad().abs().sum().item<double>(), 0);
  for (const NamedTensor& p : model.layer_router->Parameters()) EXPECT_FALSE(p.tensor.grad().defined());
}

// Loss and gradients of two micro-steps against one loss over the replayed passes.
TEST(LayerwiseLoss, IsTheMeanOverLayersOfTheRouterLossOnRoutedInputs) {
  Options options;
  options.sequence = kSequence;
  options.router_balance = 0.1;
  options.router_stay = 0.2;
  for (const RouterLoss form : {RouterLoss::kCoverage, RouterLoss::kPaper}) {
    options.router_loss = form == RouterLoss::kPaper ? "paper" : "coverage";
    options.coverage_granularity = form == RouterLoss::kPaper ? "token" : "window:3";
    RoutedModel model = SomeModel(4);
    model.layer_router = SomeRouter(4, 1);
    for (const NamedTensor& p : model.layer_router->Parameters()) p.tensor.requires_grad_();
    const RoutedModel::Masking masking = model.Prepare();
    std::vector<at::Tensor> norms;
    for (const model::Layer& layer : model.masters.layers) norms.push_back(ColumnNorms(layer.down));
    LayerwiseLoss loss(options, model, masking, form, norms);
    const TokenBatch batch = SomeBatch(2);
    const double mine = (loss.MicroStep(batch, 0.25) + loss.MicroStep(batch, 0.75)).item<double>();
    std::vector<at::Tensor> gradients;
    for (const NamedTensor& p : model.layer_router->Parameters()) {
      gradients.push_back(p.tensor.grad().clone());
      p.tensor.mutable_grad().reset();
    }

    std::vector<at::Tensor> chosen;
    const auto hook = model.Hook(masking, {}, &chosen);
    model::HiddenStates(model.config, model.masters, batch.inputs, hook.get());
    Replay replay(RowsOf(model.masks, chosen));
    model::HiddenStates(model.config, model.masters, batch.inputs, &replay);
    at::Tensor expected = at::zeros({});
    for (int64_t l = 0; l < kLayers; ++l) {
      const auto at_layer = static_cast<size_t>(l);
      Masks one(4, 1, kChannels);
      one.SetLayer(0, model.masks.Layer(l));
      RouterTargets targets(form, one, {norms[at_layer]}, at::kCPU);
      targets.Add(0, replay.hidden[at_layer]);
      if (form == RouterLoss::kCoverage) targets.Smooth(kSequence, 3);
      const at::Tensor z = model.layer_router->Logits(l, replay.inputs[at_layer]);
      const at::Tensor texts = z.view({2, kSequence, 4});
      expected = expected + (targets.Loss(z) + 0.1 * BalanceLoss(texts) + 0.2 * StayLoss(texts)) / kLayers;
    }
    expected.backward();
    EXPECT_NEAR(mine, expected.item<double>(), 1e-5);
    for (size_t i = 0; i < gradients.size(); ++i) {
      EXPECT_TRUE(at::allclose(gradients[i], model.layer_router->Parameters()[i].tensor.grad(), 1e-4, 1e-6)) << i;
    }
    for (const model::Layer& layer : model.masters.layers) EXPECT_FALSE(layer.gate.grad().defined());
  }
}

}  // namespace
}  // namespace outrider::moe
