#include "serve/cpu/cpu_router.h"

#include <gtest/gtest.h>

#include <cstring>

#include "cpu_support.h"

namespace outrider::serve::tests {
namespace {

RouterSpec TinySpec() {
  RouterSpec spec;
  spec.vocab = 101;
  spec.experts = 5;
  spec.width = 40;
  spec.heads = 4;
  return spec;
}

constexpr int64_t kBackbone = 64;

Tensors RouterWeights(const RouterSpec& s, uint32_t seed) {
  std::mt19937 random(seed);
  Tensors t;
  if (s.table == RouterTable::kOwn)
    t.AddNormal(random, "embed.weight", {s.vocab, s.width}, 1);
  else
    t.AddNormal(random, "model.embed_tokens.weight", {s.vocab, kBackbone}, 1);
  const auto matrix = [&](const std::string& name, int64_t rows) {
    t.AddNormal(random, name + ".weight", {rows, s.width}, 1 / std::sqrt(static_cast<float>(s.width)));
    t.AddNormal(random, name + ".bias", {rows}, 0.2F);
  };
  if (s.context == RouterContext::kCausal) {
    t.AddNormal(random, "block.attn_norm.weight", {s.width}, 0.2F, 1);
    for (const char* name : {"block.q", "block.k", "block.v", "block.o"}) matrix(name, s.width);
  }
  t.AddNormal(random, "block.mlp_norm.weight", {s.width}, 0.2F, 1);
  t.AddNormal(random, "norm.weight", {s.width}, 0.2F, 1);
  matrix("block.w1", s.width);
  matrix("block.w2", s.width);
  matrix("head", s.experts);
  return t;
}

std::unique_ptr<CpuRouter> MakeRouter(const RouterSpec& s, const Tensors& t, int threads) {
  const ModelShape shape{.vocab = 101, .context = 300, .experts = 5, .route_pages = 40};
  return CpuRouter::Make(s, t.source, kBackbone, shape, std::make_shared<kernels::Workers>(threads)).value();
}

std::vector<Row> ReferenceRouter(const RouterSpec& s, const Tensors& t, const std::vector<int32_t>& ids) {
  const bool own = s.table == RouterTable::kOwn;
  const auto& table = t.at(own ? "embed.weight" : "model.embed_tokens.weight");
  const int64_t stride = own ? s.width : kBackbone;
  std::vector<Row> x, logits;
  for (const int32_t id : ids) x.emplace_back(table.begin() + id * stride, table.begin() + id * stride + s.width);
  const auto add = [](Row& to, const Row& from) { std::ranges::transform(to, from, to.begin(), std::plus<>()); };
  if (s.context == RouterContext::kCausal) {
    std::vector<Row> q, k, v;
    for (const Row& row : x) {
      const Row normed = Normed(row, t.at("block.attn_norm.weight"), 1e-6);
      q.push_back(Times(t, "block.q", normed));
      k.push_back(Times(t, "block.k", normed));
      v.push_back(Times(t, "block.v", normed));
    }
    const int64_t dim = s.width / s.heads;
    const double scale = s.scale == ScoreScale::kNone ? 1 : 1 / std::sqrt(static_cast<double>(dim));
    const auto mixed = Mixed(q, k, v, dim, 1, 0, s.rope_base, scale);
    for (size_t i = 0; i < x.size(); ++i) add(x[i], Times(t, "block.o", mixed[i]));
  }
  for (Row& row : x) {
    Row inner = Times(t, "block.w1", Normed(row, t.at("block.mlp_norm.weight"), 1e-6));
    for (double& h : inner) h = Silu(h);
    add(row, Times(t, "block.w2", inner));
    logits.push_back(Times(t, "head", Normed(row, t.at("norm.weight"), 1e-6)));
  }
  return logits;
}

RouteRun RoutePiece(const Text& text, int64_t first, int64_t count, ExpertId previous = kNoExpert) {
  return {std::span(text.ids).subspan(static_cast<size_t>(first), static_cast<size_t>(count)), first, text.pages,
          previous};
}

TEST(CpuRouter, AgreesWithDoubleLoops) {
  RouterSpec specs[] = {TinySpec(), TinySpec(), TinySpec()};
  specs[1].scale = ScoreScale::kSqrt;
  specs[1].table = RouterTable::kTied;
  specs[2].context = RouterContext::kToken;
  for (const RouterSpec& spec : specs) {
    const Tensors weights = RouterWeights(spec, 3);
    const auto router = MakeRouter(spec, weights, 2);
    const Text text = RandomText(101, 0, 150, 2, 4);
    std::vector<float> logits(150 * 5);
    const RouteRun run = RoutePiece(text, 0, 150);
    const auto done = router->Logits({&run, 1}, logits);
    ASSERT_TRUE(done) << done.error().message;
    const auto expected = ReferenceRouter(spec, weights, text.ids);
    for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i / 5][i % 5], 1e-4);
  }
}

TEST(CpuRouter, BitsAndExpertsDependOnTheTextAlone) {
  RouterSpec spec = TinySpec();
  spec.tau = 0.3;
  const Tensors weights = RouterWeights(spec, 3);
  const auto one = MakeRouter(spec, weights, 1), two = MakeRouter(spec, weights, 2);
  const Text text = RandomText(101, 0, 200, 0, 4);
  std::vector<float> whole(200 * 5);
  std::vector<ExpertId> experts(200);
  const RouteRun run = RoutePiece(text, 0, 200);
  ASSERT_TRUE(one->Logits({&run, 1}, whole));
  ASSERT_TRUE(one->Route({&run, 1}, experts));
  Text shuffled = text, other = RandomText(101, 0, 5, 39, 9);
  for (int32_t& page : shuffled.pages) page = 30 - 2 * page;
  for (const int64_t size : {1, 13, 16, 130}) {
    for (int64_t first = 0; first < 200; first += size) {
      const int64_t count = std::min<int64_t>(size, 200 - first);
      const ExpertId previous = first == 0 ? kNoExpert : experts[static_cast<size_t>(first) - 1];
      const RouteRun runs[] = {RoutePiece(other, 0, 5), RoutePiece(shuffled, first, count, previous)};
      std::vector<float> logits(static_cast<size_t>(count + 5) * 5);
      std::vector<ExpertId> chosen(static_cast<size_t>(count + 5));
      ASSERT_TRUE(two->Logits(runs, logits));
      ASSERT_TRUE(two->Route(runs, chosen));
      ASSERT_EQ(std::memcmp(logits.data() + 25, whole.data() + first * 5, static_cast<size_t>(count) * 20), 0) << size;
      ASSERT_TRUE(std::equal(chosen.begin() + 5, chosen.end(), experts.begin() + first)) << size << " at " << first;
    }
  }
}

TEST(CpuRouter, TiesGoToTheLowestIndexAndTauHoldsAnExpert) {
  const std::vector<float> tie = {1, 3, 2, 3};
  EXPECT_EQ(ChooseExpert(tie, 0, kNoExpert), 1);
  EXPECT_EQ(ChooseExpert(tie, 0, 2), 1) << "without tau nothing holds";
  EXPECT_EQ(ChooseExpert(tie, 1.5, 2), 2) << "a lead of 1";
  EXPECT_EQ(ChooseExpert(tie, 1.0, 2), 1) << "a lead of exactly tau";
  EXPECT_EQ(ChooseExpert(tie, 0.1, 3), 3);
  EXPECT_EQ(ChooseExpert(tie, 9, kNoExpert), 1);
}

TEST(CpuRouter, BadCallsAreNamed) {
  const RouterSpec spec = TinySpec();
  Tensors weights = RouterWeights(spec, 3);
  const auto router = MakeRouter(spec, weights, 1);
  const Text text = RandomText(101, 0, 20, 0, 4);
  std::vector<ExpertId> experts(20);
  RouteRun run = RoutePiece(text, 0, 20, 5);
  EXPECT_EQ(router->Route({&run, 1}, experts).error().message, "run 0: previous: found 5, expected 0 to 4, or none");
  run.previous = kNoExpert;
  EXPECT_EQ(router->Route({&run, 1}, std::span(experts).first(19)).error().code, "E_SHAPE");
  run.route_pages = {};
  EXPECT_EQ(router->Route({&run, 1}, experts).error().code, "E_PAGES");
  weights.source.erase("block.v.bias");
  const ModelShape shape{.vocab = 101, .context = 300, .experts = 5, .route_pages = 40};
  const auto workers = std::make_shared<kernels::Workers>(1);
  EXPECT_EQ(CpuRouter::Make(spec, weights.source, kBackbone, shape, workers).error().message,
            "block.v.bias: found none, expected a tensor of shape [40]");
  RouterSpec wide = spec;
  wide.table = RouterTable::kTied;
  wide.width = 72;
  EXPECT_EQ(CpuRouter::Make(wide, weights.source, kBackbone, shape, workers).error().code, "E_SHAPE");
}

}  // namespace
}  // namespace outrider::serve::tests
