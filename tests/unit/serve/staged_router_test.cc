#include "serve/router/staged_router.h"

#include <gtest/gtest.h>

#include <vector>

#include "router_support.h"

namespace outrider::serve::tests {
namespace {

// Logits are a hash of all that the staged pages hold up to a token: a wrong place or page changes them.
class HashDevice : public RouterDevice {
 public:
  HashDevice(const RouterSpec& spec, const ModelShape& shape)
      : experts_(spec.experts),
        staging_(static_cast<size_t>(RouteStage::SizeMax(shape.context)), -1),
        cells_(static_cast<size_t>(shape.route_pages * 16), -1) {}

  int32_t* staging() override { return staging_.data(); }

  base::Result<const float*> Run(const RouteStage& stage) override {
    stages.push_back(stage);
    if (std::ssize(stages) == fails_at) return base::Fail("E_DEVICE", "lost as told");
    const auto number = [&](int64_t place) { return staging_[static_cast<size_t>(place)]; };
    const auto cell = [&](int64_t token, int64_t position) -> int32_t& {
      const int64_t page = number(RouteStage::kTexts + token) * stage.table + position / 16;
      EXPECT_LT(RouteStage::kPages + page, stage.size());
      return cells_.at(static_cast<size_t>(number(RouteStage::kPages + page)) * 16 +
                       static_cast<size_t>(position % 16));
    };
    for (int64_t t = 0; t < stage.tokens; ++t)
      cell(t, number(RouteStage::kPositions + t)) = number(RouteStage::kIds + t);
    logits_.clear();
    for (int64_t t = 0; t < stage.tokens; ++t) {
      uint32_t hash = 17;
      for (int64_t p = 0; p <= number(RouteStage::kPositions + t); ++p)
        hash = (hash ^ static_cast<uint32_t>(cell(t, p))) * 16777619U;
      for (int64_t e = 0; e < experts_; ++e)
        logits_.push_back(static_cast<float>((hash >> 3 * static_cast<uint32_t>(e)) % 512));
    }
    return logits_.data();
  }

  std::vector<RouteStage> stages;
  int64_t fails_at = 0;

 private:
  int64_t experts_;
  std::vector<int32_t> staging_, cells_;
  std::vector<float> logits_;
};

struct Routed {
  RouterSpec spec = TinySpec();
  ModelShape shape{.vocab = 101, .context = 1500, .experts = 5, .route_pages = 400};
  HashDevice* device = nullptr;
  std::unique_ptr<StagedRouter> router;

  explicit Routed(double tau = 0) {
    spec.tau = tau;
    auto made = std::make_unique<HashDevice>(spec, shape);
    device = made.get();
    router = std::make_unique<StagedRouter>(spec, shape, std::move(made));
  }
};

TEST(StagedRouter, LaunchesAreBoundedAndChangeNothing) {
  Routed one(40), two(40);
  const Text text = RandomText(101, 0, 1300, 0, 4);
  std::vector<ExpertId> whole(1300), pieces(1300);
  const RouteRun run = RoutePiece(text, 0, 1300);
  ASSERT_TRUE(one.router->Route({&run, 1}, whole));
  ASSERT_EQ(one.device->stages.size(), 3U);
  EXPECT_EQ(one.device->stages[2].tokens, 1300 - 2 * RouteStage::kTokensMax);
  EXPECT_EQ(one.device->stages[2].table, 82);
  for (int64_t first = 0; first < 1300; first += 37) {
    const auto at = static_cast<size_t>(first);
    const int64_t count = std::min<int64_t>(37, 1300 - first);
    const RouteRun piece = RoutePiece(text, first, count, first == 0 ? kNoExpert : pieces[at - 1]);
    ASSERT_TRUE(two.router->Route({&piece, 1}, std::span(pieces).subspan(at, static_cast<size_t>(count))));
  }
  EXPECT_EQ(whole, pieces);
}

TEST(StagedRouter, ManyTextsShareLaunches) {
  Routed together, apart;
  std::vector<Text> texts;
  for (int i = 0; i < 100; ++i) texts.push_back(RandomText(101, 0, 1 + i % 40, 3 * i, static_cast<uint32_t>(i)));
  std::vector<RouteRun> runs;
  std::vector<ExpertId> alone;
  for (const Text& text : texts) {
    runs.push_back(RoutePiece(text, 0, std::ssize(text.ids)));
    std::vector<ExpertId> experts(text.ids.size());
    ASSERT_TRUE(apart.router->Route({&runs.back(), 1}, experts));
    alone.insert(alone.end(), experts.begin(), experts.end());
  }
  std::vector<ExpertId> all(alone.size());
  ASSERT_TRUE(together.router->Route(runs, all));
  EXPECT_EQ(all, alone);
  EXPECT_LE(together.device->stages.size(), 6U);
  for (const RouteStage& stage : together.device->stages) {
    EXPECT_LE(stage.texts, RouteStage::kTextsMax);
    EXPECT_LE(stage.tokens, RouteStage::kTokensMax);
  }
}

TEST(StagedRouter, BadCallsAndALostDeviceAreNamed) {
  Routed routed;
  const Text text = RandomText(101, 0, 600, 0, 4);
  std::vector<ExpertId> experts(600);
  RouteRun run = RoutePiece(text, 0, 600, 5);
  EXPECT_EQ(routed.router->Route({&run, 1}, experts).error().message,
            "run 0: previous: found 5, expected 0 to 4, or none");
  run.previous = kNoExpert;
  EXPECT_EQ(routed.router->Route({&run, 1}, std::span(experts).first(599)).error().code, "E_SHAPE");
  std::vector<float> logits(599 * 5);
  EXPECT_EQ(routed.router->Logits({&run, 1}, logits).error().code, "E_SHAPE");
  EXPECT_TRUE(routed.device->stages.empty()) << "nothing ran";
  EXPECT_TRUE(routed.router->Route({}, {})) << "no text, no launch";
  EXPECT_TRUE(routed.device->stages.empty());
  routed.device->fails_at = 2;
  EXPECT_EQ(routed.router->Route({&run, 1}, experts).error().code, "E_DEVICE");
}

}  // namespace
}  // namespace outrider::serve::tests
