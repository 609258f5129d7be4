#include "serve/cpu/cpu_router.h"

#include <gtest/gtest.h>

#include <cstring>

#include "router_support.h"

namespace outrider::serve::tests {
namespace {

std::unique_ptr<CpuRouter> MakeRouter(const RouterSpec& s, const Tensors& t, int threads) {
  const ModelShape shape{.vocab = 101, .context = 300, .experts = 5, .route_pages = 40};
  return CpuRouter::Make(s, t.source, kRouterBackbone, shape, std::make_shared<kernels::Workers>(threads)).value();
}

TEST(CpuRouter, AgreesWithDoubleLoops) {
  RouterSpec specs[] = {TinySpec(), TinySpec(), TinySpec()};
  specs[1].scale = ScoreScale::kSqrt;
  specs[1].table = RouterTable::kTied;
  specs[2].context = RouterContext::kToken;
  for (const RouterSpec& spec : specs) {
    const Tensors weights = RandomRouter(spec, 3);
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
  const Tensors weights = RandomRouter(spec, 3);
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
  Tensors weights = RandomRouter(spec, 3);
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
  EXPECT_EQ(CpuRouter::Make(spec, weights.source, kRouterBackbone, shape, workers).error().message,
            "block.v.bias: found none, expected a tensor of shape [40]");
  RouterSpec wide = spec;
  wide.table = RouterTable::kTied;
  wide.width = 72;
  EXPECT_EQ(CpuRouter::Make(wide, weights.source, kRouterBackbone, shape, workers).error().code, "E_SHAPE");
}

}  // namespace
}  // namespace outrider::serve::tests
