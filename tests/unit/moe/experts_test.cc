#include "moe/experts.h"
#include <ATen/ATen.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <utility>

#include "moe/ffn_hooks.h"

namespace outrider::moe {
namespace {

using testing::ElementsAre;

at::Tensor Hidden(uint64_t seed, int64_t tokens, int64_t channels) {
  at::manual_seed(seed);
  return at::randn({tokens, channels}) * at::rand({channels}).add(0.2);
}

TEST(ChannelStatistics, ScoresOfAHandMadeLayer) {
  ChannelSums sums(1, 3, at::kCPU);
  sums.Add(0, at::tensor({1.F, -2.F, 0.F, 3.F, -2.F, 1.F}).view({2, 3}), 1);
  const at::Tensor down = at::tensor({3.F, 0.F, 1.F, 4.F, 1.F, 0.F}).view({2, 3});  // column norms 5, 1, 1
  EXPECT_THAT(sums.Scores(Statistic::kL1, 0, down), ElementsAre(2, 2, 0.5));
  EXPECT_THAT(sums.Scores(Statistic::kL1Out, 0, down), ElementsAre(10, 2, 0.5));
  EXPECT_THAT(sums.Scores(Statistic::kFluctuation, 0, down), ElementsAre(2 * 25, 0, 0.5));
  std::vector<ChannelSums> domains;
  domains.push_back(std::move(sums));
  const std::vector<at::Tensor> downs = {down};
  EXPECT_THAT(SelectPublished(domains, Statistic::kL1, downs, 1).Layer(0), ElementsAre(1, 0, 0)) << "ties: lower index";
}

TEST(ChannelStatistics, ChunksInOnePassOrInManyGiveTheSameBits) {
  const at::Tensor h = Hidden(1, 96, 40), down = at::randn({8, 40});
  ChannelSums whole(1, 40, at::kCPU), parts(1, 40, at::kCPU);
  whole.Add(0, h, 16);
  parts.Add(0, h.slice(0, 0, 16), 16);
  parts.Add(0, h.slice(0, 16, 48), 16);
  parts.Add(0, h.slice(0, 48, 96), 16);
  for (const Statistic s : {Statistic::kL1, Statistic::kL1Out, Statistic::kFluctuation}) {
    EXPECT_EQ(whole.Scores(s, 0, down), parts.Scores(s, 0, down));
  }
  EXPECT_EQ(whole.Tokens(0), 96);
}

struct Sums {
  std::vector<ChannelSums> domains;
  std::vector<at::Tensor> down;
};

Sums ThreeDomains() {
  Sums out;
  for (uint64_t d = 0; d < 3; ++d) {
    ChannelSums& sums = out.domains.emplace_back(2, 30, at::kCPU);
    for (int64_t l = 0; l < 2; ++l) sums.Add(l, Hidden(10 * d + static_cast<uint64_t>(l), 64, 30), 32);
  }
  for (int64_t l = 0; l < 2; ++l) out.down.push_back(at::randn({8, 30}));
  return out;
}

TEST(ChannelStatistics, EveryExpertHasExactlyK) {
  const Sums sums = ThreeDomains();
  for (const int64_t k : {1, 15, 30}) {
    const Masks masks = SelectPublished(sums.domains, Statistic::kL1, sums.down, k);
    for (int64_t l = 0; l < 2; ++l) EXPECT_THAT(masks.Count(l).active, ElementsAre(k, k, k));
  }
  EXPECT_EQ(SelectPublished(sums.domains, Statistic::kL1, sums.down, 15),
            SelectPublished(sums.domains, Statistic::kL1, sums.down, 15));
}

TEST(ChannelStatistics, StaticMasksHaveTheSameTotalSize) {
  const Sums sums = ThreeDomains();
  for (const Statistic s : {Statistic::kL1, Statistic::kL1Out, Statistic::kFluctuation}) {
    const Masks masks = SelectStatic(sums.domains, s, sums.down, 12);
    EXPECT_EQ(masks.Count(0).active[0] + masks.Count(1).active[0], 24);
    EXPECT_TRUE(s == Statistic::kFluctuation || masks.Count(0).active[0] == 12);
  }
}

TEST(ChannelStatistics, CompensationIsTheMeanOfWhatIsGone) {
  const Sums sums = ThreeDomains();
  const Masks masks = SelectStatic(sums.domains, Statistic::kL1, sums.down, 12);
  const std::vector<at::Tensor> fill = Compensation(sums.domains, masks);
  for (int64_t c = 0; c < 30; ++c) {
    double mean = 0;
    for (const ChannelSums& d : sums.domains) mean += d.Mean(1)[c].item<double>() / 3;
    EXPECT_NEAR(fill[1][c].item<double>(), masks.Has(1, 0, c) ? 0 : mean, 1e-6);
  }
}

// Tokens of `groups` kinds; kind g uses channels [8 g, 8 g + 8) of 8 * groups, with some noise elsewhere.
MassSample Grouped(int64_t groups, int64_t tokens, std::vector<int64_t> lengths = {}) {
  at::manual_seed(7);
  const int64_t channels = 8 * groups;
  if (lengths.empty()) lengths.assign(static_cast<size_t>(tokens), 1);
  MassSample sample(2, channels, static_cast<int64_t>(lengths.size()), at::kCPU);
  for (int64_t l = 0; l < 2; ++l) {
    at::Tensor h = at::rand({tokens, channels}) * 0.1;
    for (int64_t t = 0; t < tokens; ++t) h[t].slice(0, 8 * (t % groups), 8 * (t % groups) + 8).add_(1);
    sample.Add(l, h, at::ones({channels}), lengths);
  }
  return sample;
}

TEST(Coverage, FindsTheGroupsThatTokensUse) {
  const MassSample sample = Grouped(4, 80);
  const CoverageExperts found = FindCoverageExperts(sample, {.experts = 4, .keep = 8, .rounds = 12, .seed = 3});
  EXPECT_GT(found.coverage.back(), 0.8);
  for (int64_t l = 0; l < 2; ++l) {
    std::set<std::vector<int64_t>> sets;
    for (int64_t i = 0; i < 4; ++i) sets.insert(found.masks.ChannelsOf(l, i));
    EXPECT_EQ(sets.size(), 4);
    for (const std::vector<int64_t>& s : sets) {
      EXPECT_EQ(s.front() % 8, 0);
      EXPECT_EQ(s.back() - s.front(), 7);
    }
  }
  for (size_t t = 4; t < found.ids.size(); ++t) EXPECT_EQ(found.ids[t], found.ids[t - 4]);
}

TEST(Coverage, NeverFallsWithoutReseedingAndIsDeterministic) {
  const MassSample sample = Grouped(5, 100);
  for (uint64_t seed = 0; seed < 6; ++seed) {
    const CoverageOptions options{.experts = 3, .keep = 12, .rounds = 8, .seed = seed};
    const CoverageExperts found = FindCoverageExperts(sample, options), again = FindCoverageExperts(sample, options);
    EXPECT_EQ(found.masks, again.masks);
    EXPECT_EQ(found.ids, again.ids);
    EXPECT_EQ(found.coverage.size(), 9);
    for (size_t r = 1; r < found.coverage.size() && found.reseeded == 0; ++r) {
      EXPECT_GE(found.coverage[r], found.coverage[r - 1] - 1e-6);
    }
    for (int64_t l = 0; l < 2; ++l) EXPECT_THAT(found.masks.Count(l).active, ElementsAre(12, 12, 12));
  }
}

TEST(Coverage, ExpertsWithoutTokensStartAnew) {
  // Twelve units, two kinds: some of five starts must coincide, and no expert may stay empty.
  const MassSample sample = Grouped(2, 12);
  bool reseeded = false;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const CoverageExperts found = FindCoverageExperts(sample, {.experts = 5, .keep = 8, .rounds = 6, .seed = seed});
    reseeded = reseeded || found.reseeded > 0;
    EXPECT_GT(found.coverage.back(), 0.8);
  }
  EXPECT_TRUE(reseeded);
}

TEST(Coverage, ChannelsThatEverCarriedAWholeTokenAreInEveryExpert) {
  at::manual_seed(8);
  MassSample sample(1, 32, 60, at::kCPU);
  at::Tensor h = at::rand({60, 32}) * 0.1;
  for (int64_t t = 0; t < 60; ++t) h[t].slice(0, 16 * (t % 2), 16 * (t % 2) + 14).add_(1);
  h[17][31] = 1000;  // one token in sixty
  sample.Add(0, h, at::ones({32}), std::vector<int64_t>(60, 1));
  const CoverageOptions options{.experts = 2, .keep = 12, .rounds = 6, .seed = 1};
  for (const double factor : {8.0, 32.0}) {
    CoverageOptions with = options;
    with.sink_factor = factor;
    const CoverageExperts found = FindCoverageExperts(sample, with);
    int64_t holders = 0;
    for (int64_t i = 0; i < 2; ++i) holders += found.masks.Has(0, i, 31) ? 1 : 0;
    EXPECT_EQ(holders == 2, factor < 32);
    EXPECT_THAT(found.masks.Count(0).active, ElementsAre(12, 12));
  }
}

TEST(Coverage, WindowsHaveTheMeanOfTheirTokens) {
  const MassSample tokens = Grouped(2, 8), windows = Grouped(2, 8, {3, 5});
  EXPECT_EQ(windows.units(), 2);
  EXPECT_THAT(windows.tokens(), ElementsAre(3, 5));
  EXPECT_TRUE(at::allclose(windows.Rows(1, 0, 1), tokens.Rows(1, 0, 3).mean(0, true), 1e-2, 1e-4));
  EXPECT_TRUE(at::allclose(windows.Rows(1, 1, 2), tokens.Rows(1, 3, 8).mean(0, true), 1e-2, 1e-4));
  EXPECT_TRUE(at::allclose(windows.Rows(0, 0, 2).sum(1), at::ones({2}), 1e-3, 1e-3));
}

TEST(Contextual, EveryTokenKeepsItsOwnChannels) {
  ContextualHook hook({at::tensor({3.F, 0.F, 1.F, 4.F, 1.F, 0.F}).view({2, 3})}, 2);  // column norms 5, 1, 1
  at::Tensor h = at::tensor({1.F, -6.F, 2.F, -1.F, 4.F, -4.5F}).view({2, 3}).requires_grad_();
  const at::Tensor kept = hook.OnHidden(0, h);
  EXPECT_TRUE(at::equal(kept, at::tensor({1.F, -6.F, 0.F, -1.F, 0.F, -4.5F}).view({2, 3}))) << "scores 5 6 2, 5 4 4.5";
  kept.sum().backward();
  EXPECT_TRUE(at::equal(h.grad(), kept.ne(0).to(at::kFloat)));
}

TEST(Masking, TokensKeepTheChannelsOfTheirExpert) {
  const at::Tensor masks = at::tensor({1.F, 0.F, 1.F, 0.F, 1.F, 1.F}).view({2, 3});
  for (const MaskForm form : {MaskForm::kLean, MaskForm::kOperators}) {
    at::Tensor h = at::tensor({1.F, 2.F, 3.F, 4.F, 5.F, 6.F}).view({2, 3}).requires_grad_();
    MaskingHook hook({masks}, {at::tensor({0.F, 10.F, 0.F})}, at::tensor({1, 0}, at::kLong), form);
    const at::Tensor masked = hook.OnHidden(0, h);
    EXPECT_TRUE(at::equal(masked, at::tensor({0.F, 12.F, 3.F, 4.F, 10.F, 6.F}).view({2, 3})));
    (masked * 2).sum().backward();
    EXPECT_TRUE(at::equal(h.grad(), at::tensor({0.F, 2.F, 2.F, 2.F, 0.F, 2.F}).view({2, 3})));
  }
}

}  // namespace
}  // namespace outrider::moe
