// The router's kernels on the CPU (tests/support/cuda_on_cpu), behind the host's part of it.
#include "kernels/cuda/router.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "block.h"
#include "serve/router/staged_router.h"
#include "serve/router/weights.h"
#include "unit/serve/router_support.h"

namespace outrider::serve::tests {
namespace {

namespace cuda = kernels::cuda;

// As MakeCudaRouter's, in host memory. Pages hold no numbers until something is written.
class EmulatedRouter : public RouterDevice {
 public:
  EmulatedRouter(const RouterSpec& spec, RouterWeights weights, const ModelShape& shape)
      : weights_(std::move(weights)), staging_(static_cast<size_t>(RouteStage::SizeMax(shape.context))) {
    const bool attends = spec.context == RouterContext::kCausal;
    const auto w = static_cast<size_t>(spec.width), tokens = static_cast<size_t>(RouteStage::kTokensMax);
    for (auto* cache : {&keys_, &values_})
      cache->assign(attends ? static_cast<size_t>(shape.route_pages) * 16 * w : 0,
                    std::numeric_limits<float>::quiet_NaN());
    x_.resize(tokens * w), qkv_.resize(tokens * 3 * w), inner_.resize(tokens * w);
    logits_.resize(tokens * static_cast<size_t>(spec.experts));
    TakeTable(spec);
    const RouterWeights& from = weights_;
    model_ = {
        .table = from.table.dtype == files::Dtype::kBF16 ? static_cast<const void*>(narrow_.data()) : wide_.data(),
        .table_bf16 = from.table.dtype == files::Dtype::kBF16,
        .attn_norm = from.attn_norm.data(),
        .qkv = attends ? from.qkv.weight.data() : nullptr,
        .qkv_bias = from.qkv.bias.data(),
        .o = from.o.weight.data(),
        .o_bias = from.o.bias.data(),
        .mlp_norm = from.mlp_norm.data(),
        .w1 = from.w1.weight.data(),
        .w1_bias = from.w1.bias.data(),
        .w2 = from.w2.weight.data(),
        .w2_bias = from.w2.bias.data(),
        .norm = from.norm.data(),
        .head = from.head.weight.data(),
        .head_bias = from.head.bias.data(),
        .frequencies = from.frequencies.data(),
        .width = static_cast<int>(spec.width),
        .heads = static_cast<int>(spec.heads),
        .experts = static_cast<int>(spec.experts),
        .scale = spec.score_scale(),
        .eps = kRouterNormEps};
  }

  int32_t* staging() override { return staging_.data(); }

  base::Result<const float*> Run(const RouteStage& stage) override {
    const int32_t* numbers = staging_.data();
    const cuda::RouterCall call{.ids = numbers + RouteStage::kIds,
                                .positions = numbers + RouteStage::kPositions,
                                .texts = numbers + RouteStage::kTexts,
                                .pages = numbers + RouteStage::kPages,
                                .tokens = static_cast<int>(stage.tokens),
                                .table = static_cast<int>(stage.table),
                                .keys = keys_.data(),
                                .values = values_.data(),
                                .x = x_.data(),
                                .qkv = qkv_.data(),
                                .inner = inner_.data(),
                                .logits = logits_.data()};
    if (cuda::RunRouter(model_, call, nullptr) != cudaSuccess) return base::Fail("E_DEVICE", "refused");
    return logits_.data();
  }

 private:
  void TakeTable(const RouterSpec& spec) {
    const WeightRows& table = weights_.table;
    wide_.resize(static_cast<size_t>(spec.vocab * spec.width));
    for (int64_t id = 0; id < spec.vocab; ++id) table.Read(id, spec.width, wide_.data() + id * spec.width);
    for (const float number : wide_) narrow_.push_back(__float2bfloat16(number));
  }

  RouterWeights weights_;
  std::vector<int32_t> staging_;
  std::vector<float> keys_, values_, x_, qkv_, inner_, logits_, wide_;
  std::vector<__nv_bfloat16> narrow_;
  cuda::RouterModel model_;
};

constexpr ModelShape kShape{.vocab = 101, .context = 300, .experts = 5, .route_pages = 60};

StagedRouter Emulated(const RouterSpec& spec, const Tensors& tensors) {
  auto weights = ReadRouter(spec, tensors.source, kRouterBackbone);
  EXPECT_TRUE(weights);
  return {spec, kShape, std::make_unique<EmulatedRouter>(spec, *std::move(weights), kShape)};
}

RouterSpec WithHeads(int64_t width, int64_t heads) {
  RouterSpec spec = TinySpec();
  spec.width = width;
  spec.heads = heads;
  return spec;
}

void ExpectReference(const RouterSpec& spec, int64_t tokens) {
  const Tensors weights = RandomRouter(spec, 3);
  StagedRouter router = Emulated(spec, weights);
  const Text text = RandomText(101, 0, tokens, 2, 4);
  std::vector<float> logits(static_cast<size_t>(tokens * 5));
  const RouteRun run = RoutePiece(text, 0, tokens);
  const auto done = router.Logits({&run, 1}, logits);
  ASSERT_TRUE(done) << done.error().message;
  const auto expected = ReferenceRouter(spec, weights, text.ids);
  for (size_t i = 0; i < logits.size(); ++i)
    ASSERT_NEAR(logits[i], expected[i / 5][i % 5], 2e-4) << spec.width << ", " << spec.heads << ", token " << i / 5;
}

TEST(CudaRouter, AgreesWithDoubleLoops) {
  for (const auto& [width, heads] : {std::pair<int64_t, int64_t>{40, 4}, {64, 1}, {96, 1}, {18, 3}, {136, 1}, {2, 1}})
    ExpectReference(WithHeads(width, heads), 40);
  ExpectReference(WithHeads(264, 4), 10);  // more than one slab of weights
  ExpectReference(WithHeads(16, 2), 200);  // more pages than warps
  RouterSpec spec = TinySpec();
  spec.scale = ScoreScale::kSqrt;
  spec.table = RouterTable::kTied;
  ExpectReference(spec, 30);
  spec.context = RouterContext::kToken;
  ExpectReference(spec, 30);
}

TEST(CudaRouter, BitsDependOnTheTextAlone) {
  const RouterSpec spec = WithHeads(24, 2);
  const Tensors weights = RandomRouter(spec, 3);
  StagedRouter one = Emulated(spec, weights), two = Emulated(spec, weights);
  const Text text = RandomText(101, 0, 160, 0, 4);
  std::vector<float> whole(160 * 5);
  const RouteRun run = RoutePiece(text, 0, 160);
  ASSERT_TRUE(one.Logits({&run, 1}, whole));
  Text shuffled = text, other = RandomText(101, 0, 5, 39, 9);
  for (int32_t& page : shuffled.pages) page = 58 - 2 * page;
  for (const int64_t size : {1, 13, 130}) {
    for (int64_t first = 0; first < 160; first += size) {
      const int64_t count = std::min<int64_t>(size, 160 - first);
      const RouteRun runs[] = {RoutePiece(other, 0, 5), RoutePiece(shuffled, first, count)};
      std::vector<float> logits(static_cast<size_t>(count + 5) * 5);
      ASSERT_TRUE(two.Logits(runs, logits));
      ASSERT_EQ(std::memcmp(logits.data() + 25, whole.data() + first * 5, static_cast<size_t>(count) * 20), 0) << size;
    }
  }
}

TEST(CudaRouter, BitsOfAWideRouterDependOnTheTextAlone) {
  const RouterSpec spec = WithHeads(520, 4);
  const Tensors weights = RandomRouter(spec, 3);
  StagedRouter one = Emulated(spec, weights), two = Emulated(spec, weights);
  const Text text = RandomText(101, 0, 20, 0, 4);
  std::vector<float> whole(20 * 5), part(19 * 5), last(5);
  const RouteRun run = RoutePiece(text, 0, 20), before = RoutePiece(text, 0, 19), behind = RoutePiece(text, 19, 1);
  ASSERT_TRUE(one.Logits({&run, 1}, whole));
  ASSERT_TRUE(two.Logits({&before, 1}, part));
  ASSERT_TRUE(two.Logits({&behind, 1}, last));
  EXPECT_EQ(std::memcmp(part.data(), whole.data(), part.size() * 4), 0);
  EXPECT_EQ(std::memcmp(last.data(), whole.data() + 95, 20), 0);
}

TEST(CudaRouter, ANarrowTableIsExact) {
  const RouterSpec spec = TinySpec();
  Tensors weights = RandomRouter(spec, 3);
  std::vector<float>& wide = weights.values.at("embed.weight");
  std::vector<__nv_bfloat16> narrow;
  for (float& number : wide) number = __bfloat162float(narrow.emplace_back(__float2bfloat16(number)));
  const Text text = RandomText(101, 0, 20, 0, 4);
  const RouteRun run = RoutePiece(text, 0, 20);
  std::vector<float> logits(100), of_narrow(100);
  ASSERT_TRUE(Emulated(spec, weights).Logits({&run, 1}, logits));
  weights.source["embed.weight"] = {files::Dtype::kBF16, {101, spec.width}, narrow.data()};
  ASSERT_TRUE(Emulated(spec, weights).Logits({&run, 1}, of_narrow));
  EXPECT_EQ(logits, of_narrow);
}

TEST(CudaRouter, WhatKernelsDoNotTakeIsRefused) {
  cuda::RouterCall call;
  cuda::RouterModel model{.width = 16, .heads = 2, .experts = 3};
  EXPECT_EQ(cuda::RunRouter(model, call, nullptr), cudaErrorInvalidValue) << "no token";
  call.tokens = 1;
  for (const auto& [width, heads] : {std::pair{cuda::kRouterWidthMax + 16, 64}, {520, 1}, {6, 2}, {16, 0}}) {
    model.width = width, model.heads = heads;
    EXPECT_EQ(cuda::RunRouter(model, call, nullptr), cudaErrorInvalidValue) << width << " in " << heads;
  }
}

}  // namespace
}  // namespace outrider::serve::tests
