#include "model/llama.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace outrider::model {
namespace {

Config Small() {
  Config config;
  config.model_type = "llama";
  config.hidden_size = 16;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 4;
  config.ffn = 24;
  config.vocab = 40;
  config.max_positions = 32;
  config.windows = {0, 0, 0};
  return config;
}

at::Tensor SomeIds(int64_t texts, int64_t tokens) { return at::randint(0, 40, {texts, tokens}, at::kLong); }

// Notes what it is shown; multiplies h by `factor`.
class Recorder : public FfnHook {
 public:
  explicit Recorder(double factor) : factor_(factor) {}
  void OnTokens(const at::Tensor& ids, int64_t past) override { passes.emplace_back(ids.size(1), past); }
  void OnInput(int64_t layer, const at::Tensor& x) override {
    EXPECT_EQ(layer, static_cast<int64_t>(layers.size() % 3)) << "right before OnHidden";
    EXPECT_EQ(x.size(1), 16);
  }
  at::Tensor OnHidden(int64_t layer, const at::Tensor& h) override {
    layers.push_back(layer);
    shapes.push_back(h.sizes().vec());
    return h.mul(factor_);
  }

  std::vector<std::pair<int64_t, int64_t>> passes;
  std::vector<int64_t> layers;
  std::vector<std::vector<int64_t>> shapes;

 private:
  double factor_;
};

TEST(Llama, HookSeesEveryLayerOfEveryPass) {
  const Config config = Small();
  const Parameters parameters = RandomParameters(config, 1);
  Recorder recorder(1);
  const at::Tensor ids = SomeIds(2, 5);
  const at::Tensor hooked = HiddenStates(config, parameters, ids, &recorder);
  EXPECT_TRUE(at::equal(hooked, HiddenStates(config, parameters, ids)));
  EXPECT_EQ(recorder.layers, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(recorder.shapes, std::vector<std::vector<int64_t>>(3, {10, 24}));
  KvCache cache(config, 2, 8, parameters.embed);
  HiddenStates(config, parameters, ids, cache, &recorder);
  HiddenStates(config, parameters, SomeIds(2, 1), cache, &recorder);
  EXPECT_EQ(recorder.passes, (std::vector<std::pair<int64_t, int64_t>>{{5, 0}, {5, 0}, {1, 5}}));
}

TEST(Llama, WhatTheHookReturnsGoesIntoTheDownProjection) {
  const Config config = Small();
  Parameters parameters = RandomParameters(config, 1);
  const at::Tensor ids = SomeIds(1, 6);
  Recorder twice(2), nothing(0);
  const at::Tensor doubled = HiddenStates(config, parameters, ids, &twice);
  const at::Tensor without = HiddenStates(config, parameters, ids, &nothing);
  Parameters changed = parameters;
  for (Layer& layer : changed.layers) layer.down = layer.down.mul(2);
  EXPECT_TRUE(at::allclose(doubled, HiddenStates(config, changed, ids), 1e-5, 1e-6));
  for (Layer& layer : changed.layers) layer.down = at::zeros_like(layer.down);
  EXPECT_TRUE(at::allclose(without, HiddenStates(config, changed, ids), 1e-5, 1e-6));
  EXPECT_FALSE(at::allclose(without, doubled, 1e-3, 1e-3));
}

TEST(Llama, LaterTokensDoNotReachEarlierOnes) {
  const Config config = Small();
  const Parameters parameters = RandomParameters(config, 1);
  const at::Tensor ids = SomeIds(1, 8);
  at::Tensor other = ids.clone();
  other.slice(1, 5).add_(1).remainder_(40);
  const at::Tensor a = HiddenStates(config, parameters, ids), b = HiddenStates(config, parameters, other);
  EXPECT_TRUE(at::equal(a.slice(1, 0, 5), b.slice(1, 0, 5)));
  EXPECT_FALSE(at::equal(a.slice(1, 5), b.slice(1, 5)));
}

TEST(Llama, WindowsHideWhatIsFurtherBack) {
  Config config = Small();
  config.windows = {3, 3, 3};
  const Parameters parameters = RandomParameters(config, 1);
  const at::Tensor ids = SomeIds(1, 12);
  at::Tensor other = ids.clone();
  other.select(1, 0).add_(1).remainder_(40);
  const at::Tensor a = HiddenStates(config, parameters, ids), b = HiddenStates(config, parameters, other);
  // Each of three layers carries a token two further.
  EXPECT_TRUE(at::equal(a.slice(1, 7), b.slice(1, 7)));
  EXPECT_FALSE(at::equal(a.select(1, 6), b.select(1, 6)));
}

TEST(Llama, CacheHasARoomAndAContextAnEnd) {
  const Config config = Small();
  const Parameters parameters = RandomParameters(config, 1);
  KvCache cache(config, 1, 4, parameters.embed);
  HiddenStates(config, parameters, SomeIds(1, 4), cache);
  EXPECT_EQ(cache.Length(), 4);
  EXPECT_THROW(HiddenStates(config, parameters, SomeIds(1, 1), cache), base::CheckError);
  cache.Truncate(2);
  EXPECT_NO_THROW(HiddenStates(config, parameters, SomeIds(1, 2), cache));
  EXPECT_THROW(HiddenStates(config, parameters, SomeIds(1, 33)), base::CheckError);
}

TEST(Llama, RandomWeightsFollowTheSeed) {
  const Config config = Small();
  const Parameters a = RandomParameters(config, 1), b = RandomParameters(config, 1), c = RandomParameters(config, 2);
  EXPECT_TRUE(at::equal(a.layers[2].down, b.layers[2].down));
  EXPECT_FALSE(at::equal(a.layers[2].down, c.layers[2].down));
  EXPECT_TRUE(at::equal(a.norm, at::ones_like(a.norm)));
}

}  // namespace
}  // namespace outrider::model
