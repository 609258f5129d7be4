#include "moe/carve.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "moe/losses.h"

namespace outrider::moe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(SplitChannels, EqualExpertsWhereTheNumbersAllowIt) {
  const CarvedSizes half = SplitChannels(1536, 768, 8, 2).value();
  EXPECT_EQ(half.shared, 512);
  EXPECT_EQ(half.routed, std::vector<int64_t>(8, 128));
  const CarvedSizes most = SplitChannels(1536, 1152, 8, 2).value();
  EXPECT_EQ(most.shared, 1024);
  EXPECT_EQ(most.routed, std::vector<int64_t>(8, 64));
}

TEST(SplitChannels, NothingIsLostAndNoTokenUsesMoreThanItsShare) {
  for (int64_t channels = 20; channels < 90; ++channels) {
    for (const auto& [experts, top] : std::vector<std::pair<int64_t, int64_t>>{{4, 1}, {8, 2}, {6, 3}}) {
      for (int64_t keep = 1; keep <= channels; ++keep) {
        const auto sizes = SplitChannels(channels, keep, experts, top);
        if (!sizes) continue;
        const auto [least, most] = std::ranges::minmax(sizes->routed);
        EXPECT_EQ(std::accumulate(sizes->routed.begin(), sizes->routed.end(), sizes->shared), channels);
        EXPECT_GE(least, 1);
        EXPECT_LE(most - least, 1);
        EXPECT_LE(sizes->shared + top * most, keep);
        EXPECT_GE(sizes->shared + top * least, keep - top);
      }
    }
  }
}

TEST(SplitChannels, SharesThatCannotBeAreNamed) {
  EXPECT_THAT(SplitChannels(100, 10, 8, 2).error().message, HasSubstr("experts.keep: found 10 of 100 channels"));
  EXPECT_THAT(SplitChannels(100, 100, 8, 2).error().message, HasSubstr("experts.keep: found 100 of 100"));
}

// 14 channels. 0 and 1 are strong for every token; of 2-5, 6-9 and 10-13 one group is strong per token, by turns; the
// groups' first channels follow their group most closely. Channel 13 is a sink: 1 of 60 tokens gives it all its mass.
at::Tensor Activations() {
  at::manual_seed(4);
  at::Tensor h = at::rand({60, 14}) * 0.01;
  for (int64_t t = 0; t < 60; ++t) {
    h[t].slice(0, 0, 2).add_(3);
    h[t].slice(0, 2 + 4 * (t % 3), 6 + 4 * (t % 3)).add_(1);
  }
  h[59].slice(0, 13, 14).fill_(1000);
  return h;
}

Carved CarveActivations(double sink_factor) {
  CoActivation seen(1, 14, at::kCPU);
  const at::Tensor h = Activations();
  seen.Add(0, h.slice(0, 0, 25), at::ones({14}));
  seen.Add(0, h.slice(0, 25), at::ones({14}));
  return Carve(seen, {.keep = 6, .experts = 3, .top = 1, .sink_factor = sink_factor}).value();
}

TEST(Carve, StrongChannelsAreSharedAndGroupsBecomeExperts) {
  const Carved carved = CarveActivations(14);  // no sinks
  const LayerCounts counts = carved.masks.Count(0);
  EXPECT_EQ(counts.permanent, 2);
  EXPECT_EQ(counts.dead, 0);
  EXPECT_THAT(counts.active, ElementsAre(6, 6, 6));
  EXPECT_EQ(counts.live_signatures, 4);
  EXPECT_TRUE(carved.masks.Has(0, 0, 0) && carved.masks.Has(0, 1, 1));
  std::set<Signature> groups;
  for (int64_t group = 0; group < 3; ++group) {
    const Signature first = carved.masks.Layer(0)[static_cast<size_t>(2 + 4 * group)];
    groups.insert(first);
    for (int64_t c = 2 + 4 * group; c < 6 + 4 * group; ++c) {
      EXPECT_EQ(carved.masks.Layer(0)[static_cast<size_t>(c)], first) << c;
    }
  }
  EXPECT_EQ(groups.size(), 3);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(carved.masks.Has(0, i, carved.representatives[0][static_cast<size_t>(i)]));
  }
}

TEST(Carve, SinksAreShared) {
  // 1000 of 1009 is more than 10 / 14 of the mass; at most keep / 4 = 1 channel is shared for that reason.
  const Carved carved = CarveActivations(10);
  EXPECT_EQ(carved.masks.Layer(0)[13], carved.masks.Full());
  EXPECT_EQ(carved.masks.Count(0).permanent, 2);
}

TEST(CoActivation, HandComputed) {
  // Shares of mass 0.5, 0.3, 0.2, 0 of four channels: 2, 1.2, 0.8, 0 times the mean; the second token is a sink's.
  CoActivation seen(1, 4, at::kCPU);
  seen.Add(0, at::tensor({-5.F, 1.F, 2.F, 0.F}).unsqueeze(0), at::tensor({1.F, 3.F, 1.F, 9.F}));
  const std::vector<float> one = seen.Together(0);
  EXPECT_NEAR(one[0], 2, 1e-5);
  EXPECT_NEAR(one[1], std::sqrt(2 * 1.2), 1e-5);
  EXPECT_NEAR(one[6], std::sqrt(1.2 * 0.8), 1e-5);
  EXPECT_EQ(one[3], 0);
  seen.Add(0, at::tensor({0.F, 0.F, 0.F, 7.F}).unsqueeze(0), at::ones({4}));
  EXPECT_NEAR(seen.Together(0)[15], 4, 1e-5);
  EXPECT_NEAR(seen.Mass(0)[0], 0.5, 1e-6);
  EXPECT_NEAR(seen.Mass(0)[3], 1, 1e-6);
  EXPECT_NEAR(seen.Peaks(0)[1], 0.3, 1e-6);
  EXPECT_NEAR(seen.Peaks(0)[3], 1, 1e-6);
}

TEST(CoActivation, NoTokenOutweighsAllOthers) {
  CoActivation seen(1, 20, at::kCPU);
  seen.Add(0, at::eye(20).slice(0, 0, 1), at::ones({20}));
  EXPECT_NEAR(seen.Together(0)[0], 8, 1e-5) << "20 times the mean counts as 8";
}

TEST(RepresentativeFit, IsTheLineOfLeastSquares) {
  const Carved carved = CarveActivations(14);
  const at::Tensor h = Activations().slice(0, 0, 59), norms = at::rand({14}) + 0.5;
  RepresentativeFit fit(carved, at::kCPU);
  fit.Add(0, h.slice(0, 0, 30), norms);
  fit.Add(0, h.slice(0, 30), norms);
  const at::Tensor gate = at::randn({14, 5}), up = at::randn({14, 5});
  const LayerRouter router = fit.Router({gate}, {up}, 1);
  const at::Tensor mass = ActivationMass(h, norms);
  const NamedTensors& parameters = router.Parameters();
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t channel = carved.representatives[0][static_cast<size_t>(i)];
    EXPECT_TRUE(at::equal(parameters[0].tensor[0][i], gate[channel]));
    EXPECT_TRUE(at::equal(parameters[1].tensor[0][i], up[channel]));
    at::Tensor y = at::zeros({59}, at::kDouble);
    for (int64_t j = 0; j < 3; ++j) {
      for (const int64_t c : carved.masks.ChannelsOf(0, j)) {
        if (carved.masks.Layer(0)[static_cast<size_t>(c)] == carved.masks.Full()) continue;
        y += mass.select(1, c) * ((j == i ? 1.0 : 0.0) - 1.0 / 3) * 150;
      }
    }
    const at::Tensor s = h.select(1, channel).abs().to(at::kDouble);
    const at::Tensor design = at::stack({s, at::ones_like(s)}, 1);
    const at::Tensor line = std::get<0>(at::linalg_lstsq(design, y.unsqueeze(1))).flatten();
    EXPECT_NEAR(parameters[2].tensor[0][i].item<double>(), line[0].item<double>(),
                1e-3 * std::abs(line[0].item<double>()));
    EXPECT_NEAR(parameters[3].tensor[0][i].item<double>(), line[1].item<double>(), 1e-2);
  }
}

TEST(LayerRouter, LogitsOfBothForms) {
  at::manual_seed(2);
  const at::Tensor x = at::randn({6, 5}), gate = at::randn({2, 4, 5}), up = at::randn({2, 4, 5});
  const at::Tensor scale = at::randn({2, 4}), bias = at::randn({2, 4});
  const LayerRouter gated = LayerRouter::Gated(gate, up, scale, bias, 2);
  EXPECT_EQ(gated.ParameterCount(), 2 * 4 * 12);
  const at::Tensor g = x.matmul(gate[1].t());
  const at::Tensor expected = (g * at::sigmoid(g) * x.matmul(up[1].t())).abs() * scale[1] + bias[1];
  EXPECT_TRUE(at::allclose(gated.Logits(1, x), expected, 1e-5, 1e-5));
  const at::Tensor two = gated.Choose(expected);
  EXPECT_TRUE(at::equal(two.select(1, 0), expected.argmax(-1)));
  EXPECT_TRUE(at::equal(two.select(1, 1), expected.argsort(-1, true).select(1, 1)));
  const LayerRouter linear = LayerRouter::Linear(2, 4, 5, at::kCPU);
  EXPECT_EQ(linear.ParameterCount(), 2 * 4 * 6);
  linear.Parameters()[0].tensor.copy_(gate);
  linear.Parameters()[1].tensor.copy_(bias);
  EXPECT_TRUE(at::allclose(linear.Logits(0, x), x.matmul(gate[0].t()) + bias[0], 1e-5, 1e-5));
}

}  // namespace
}  // namespace outrider::moe
