#include "moe/router.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "moe/optimizer.h"

namespace outrider::moe {
namespace {

using testing::HasSubstr;

TEST(RouterCount, PublishedShape) {
  EXPECT_EQ(ParameterCount({.vocab = 32000, .experts = 7}), 17'965'063);
  const auto without_table = [](int64_t width) {
    return ParameterCount({.vocab = 32000, .experts = 7, .width = width, .embedding = RouterEmbedding::kTied});
  };
  EXPECT_EQ(without_table(512), 1'581'063);
  EXPECT_EQ(without_table(256), 397'319);
  EXPECT_EQ(without_table(128), 100'359);
  EXPECT_EQ(ParameterCount({.vocab = 49152, .experts = 7}), 26'746'887);
}

RouterShape Small() { return {.vocab = 50, .experts = 5, .width = 32}; }

at::Tensor Table(int64_t columns = 40) {
  at::manual_seed(3);
  return at::randn({50, columns});
}

at::Tensor Ids(int64_t batch, int64_t tokens) {
  at::manual_seed(4);
  return at::randint(50, {batch, tokens}, at::kLong);
}

TEST(Router, HasAsManyParametersAsCounted) {
  for (const bool attention : {true, false}) {
    for (const RouterEmbedding embedding : {RouterEmbedding::kOwn, RouterEmbedding::kTied}) {
      RouterShape shape = Small();
      shape.attention = attention;
      shape.embedding = embedding;
      const Router router = Router::Make(shape, 1, Table()).value();
      int64_t count = 0;
      for (const NamedTensor& p : router.Parameters()) count += p.tensor.numel();
      EXPECT_EQ(count, ParameterCount(shape));
      EXPECT_EQ(router.Logits(Ids(2, 7), Table()).sizes(), (std::vector<int64_t>{2, 7, 5}));
    }
  }
}

TEST(Router, IsCausal) {
  const Router router = Router::Make(Small(), 1, Table()).value();
  at::Tensor ids = Ids(2, 12);
  const at::Tensor before = router.Logits(ids, Table());
  ids.select(1, 7).add_(1).remainder_(50);
  const at::Tensor after = router.Logits(ids, Table());
  EXPECT_TRUE(at::equal(before.slice(1, 0, 7), after.slice(1, 0, 7)));
  EXPECT_FALSE(at::allclose(before.select(1, 7), after.select(1, 7)));
  EXPECT_FALSE(at::allclose(before.select(1, 11), after.select(1, 11))) << "attention sees earlier tokens";
}

TEST(Router, WithoutAttentionSeesOneToken) {
  RouterShape shape = Small();
  shape.attention = false;
  const Router router = Router::Make(shape, 1, Table()).value();
  at::Tensor ids = Ids(1, 12);
  const at::Tensor before = router.Logits(ids, Table());
  ids.select(1, 3).add_(1).remainder_(50);
  const at::Tensor after = router.Logits(ids, Table());
  EXPECT_TRUE(at::equal(before.slice(1, 4), after.slice(1, 4)));
}

TEST(Router, PiecesGiveWhatTheWholeGives) {
  for (const AttentionScale scale : {AttentionScale::kNone, AttentionScale::kSqrt}) {
    RouterShape shape = Small();
    shape.scale = scale;
    const Router router = Router::Make(shape, 1, Table()).value();
    const at::Tensor ids = Ids(3, 200);
    const at::Tensor whole = router.Logits(ids, Table());
    for (const std::vector<int64_t>& pieces : std::vector<std::vector<int64_t>>{{100, 1, 99}, {1, 1, 1, 57, 140}}) {
      RouterCache cache;
      std::vector<at::Tensor> parts;
      int64_t begin = 0;
      for (const int64_t n : pieces) {
        parts.push_back(router.Logits(ids.slice(1, begin, begin + n), Table(), &cache));
        begin += n;
      }
      EXPECT_EQ(cache.tokens, 200);
      EXPECT_TRUE(at::allclose(at::cat(parts, 1), whole, 1e-4, 1e-5));
    }
  }
}

TEST(Router, SwitchesChangeTheFunction) {
  RouterShape none = Small(), sqrt = Small(), tied = Small();
  sqrt.scale = AttentionScale::kSqrt;
  tied.embedding = RouterEmbedding::kTied;
  const at::Tensor ids = Ids(1, 9);
  const auto logits = [&](const RouterShape& shape, uint64_t seed) {
    return Router::Make(shape, seed, Table()).value().Logits(ids, Table());
  };
  EXPECT_TRUE(at::equal(logits(none, 1), logits(none, 1)));
  EXPECT_FALSE(at::allclose(logits(none, 1), logits(none, 2)));
  EXPECT_FALSE(at::allclose(logits(none, 1), logits(sqrt, 1)));
  EXPECT_FALSE(at::allclose(logits(none, 1), logits(tied, 1))) << "one table more takes other draws";
}

TEST(Router, OwnTableStartsFromTheBackbone) {
  const Router narrow = Router::Make(Small(), 1, Table(20)).value();
  const at::Tensor& own = narrow.Parameters()[0].tensor;
  EXPECT_EQ(narrow.Parameters()[0].name, "embed.weight");
  EXPECT_TRUE(at::equal(own.slice(1, 0, 20), Table(20)));
  EXPECT_GT(own.slice(1, 20).abs().sum().item<double>(), 0) << "columns beyond the backbone's come from the seed";
}

TEST(Router, RefusesShapesThatDoNotFit) {
  RouterShape tied = Small();
  tied.embedding = RouterEmbedding::kTied;
  EXPECT_THAT(Router::Make(tied, 1, Table(16)).error().message, HasSubstr("at least 32 columns"));
  RouterShape odd = Small();
  odd.width = 36;
  EXPECT_THAT(Router::Make(odd, 1, Table()).error().message, HasSubstr("found 36, expected a multiple of 8"));
}

TEST(Router, LoadsWhatItStores) {
  const Router router = Router::Make(Small(), 1, Table()).value();
  NamedTensors stored;
  for (const NamedTensor& p : router.Parameters()) stored.push_back({p.name, p.tensor.clone()});
  const at::Tensor ids = Ids(1, 9);
  EXPECT_TRUE(at::equal(Router::Load(Small(), stored).value().Logits(ids, Table()), router.Logits(ids, Table())));
  stored.back().tensor = at::zeros({4});
  EXPECT_EQ(Router::Load(Small(), stored).error().message, "head.bias: found shape [4], expected [5]");
  stored.pop_back();
  EXPECT_EQ(Router::Load(Small(), stored).error().message, "head.bias: missing");
}

// A quadratic bowl: (w - goal)^2 summed.
at::Tensor Bowl(const at::Tensor& w, double goal) { return (w - goal).square().sum(); }

TEST(Optimizer, DescendsAndResumesBitForBit) {
  const auto make = [] {
    return AdamW({{"a", at::zeros({3}).requires_grad_()}, {"b", at::ones({2, 2}).requires_grad_()}}, {.clip_norm = 1});
  };
  const auto step = [](AdamW& adam) {
    adam.ZeroGradients();
    (Bowl(adam.parameters()[0].tensor, 2) + Bowl(adam.parameters()[1].tensor, -1)).backward();
    return adam.Step(0.1).value();
  };
  AdamW whole = make();
  NamedTensors kept;
  double first = step(whole);
  EXPECT_NEAR(first, std::sqrt(3 * 16 + 4 * 16), 1e-5) << "the norm before clipping";
  for (int i = 0; i < 20; ++i) step(whole);
  for (const NamedTensor& s : whole.State()) kept.push_back({s.name, s.tensor.clone()});
  for (int i = 0; i < 20; ++i) step(whole);
  EXPECT_LT(Bowl(whole.parameters()[0].tensor, 2).item<double>(), 0.5);

  AdamW resumed = make();
  ASSERT_TRUE(resumed.Restore(kept));
  for (int i = 0; i < 20; ++i) step(resumed);
  for (size_t i = 0; i < whole.State().size(); ++i) {
    EXPECT_TRUE(at::equal(whole.State()[i].tensor, resumed.State()[i].tensor)) << whole.State()[i].name;
  }
  kept.pop_back();
  EXPECT_EQ(resumed.Restore(kept).error().message, "b.step: missing");
}

TEST(Optimizer, StopsAtTheFirstGradientThatIsNotFinite) {
  AdamW adam({{"a", at::zeros({3}).requires_grad_()}, {"b", at::ones({2}).requires_grad_()}}, {});
  (adam.parameters()[0].tensor.sum() + adam.parameters()[1].tensor.log().div(0).sum()).backward();
  const auto stopped = adam.Step(0.1);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, "E_NAN");
  EXPECT_EQ(stopped.error().message, "b: 2 elements of the gradient are not finite");
  EXPECT_TRUE(at::equal(adam.parameters()[1].tensor, at::ones({2})));
}

}  // namespace
}  // namespace outrider::moe
