#include "serve/cpu/cpu_executor.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "cpu_support.h"

namespace outrider::serve::tests {
namespace {

using kernels::Number;

constexpr Number kAll[] = {Number::kF32, Number::kBf16, Number::kI8};

TEST(CpuExecutor, AgreesWithDoubleLoops) {
  for (const Form& form : Forms()) {
    const Tensors weights = RandomWeights(form.config, 1);
    const ExpertMap map = form.experts > 0 ? RandomExperts(form.config, form.experts, 2) : ExpertMap{};
    const auto executor = MakeExecutor(form.config, map, weights, Number::kF32, 2);
    const Text text = RandomText(form.config.vocab, form.experts, 50, 3, 4);
    const auto logits = RunWhole(*executor, text);
    const auto expected = ReferenceLogits(form.config, map, weights, text.ids, text.experts);
    for (size_t t = 0; t < expected.size(); ++t)
      for (size_t v = 0; v < expected[t].size(); ++v)
        ASSERT_NEAR(logits[t * expected[t].size() + v], expected[t][v], 1e-4) << form.name << " token " << t;
  }
}

// Of what the formats round, the share of the logits' size that is lost.
TEST(CpuExecutor, SmallerFormatsStayNear) {
  for (const Form& form : Forms()) {
    const Tensors weights = RandomWeights(form.config, 1);
    const ExpertMap map = form.experts > 0 ? RandomExperts(form.config, form.experts, 2) : ExpertMap{};
    const Text text = RandomText(form.config.vocab, form.experts, 50, 3, 4);
    const auto exact = RunWhole(*MakeExecutor(form.config, map, weights, Number::kF32, 1), text);
    for (const Number number : {Number::kBf16, Number::kI8}) {
      const auto logits = RunWhole(*MakeExecutor(form.config, map, weights, number, 1), text);
      double error = 0, size = 0;
      for (size_t i = 0; i < exact.size(); ++i) {
        error += std::pow(logits[i] - exact[i], 2);
        size += std::pow(exact[i], 2);
      }
      const double share = std::sqrt(error / size);
      EXPECT_LT(share, number == Number::kBf16 ? 0.01 : 0.03) << form.name;
      EXPECT_GT(share, 0) << form.name;
    }
  }
}

// The text in pieces of each size, between pieces of other texts, in pages in any order, on one thread and on two.
TEST(CpuExecutor, BitsDependOnTheTextAlone) {
  for (const Form& form : Forms()) {
    const Tensors weights = RandomWeights(form.config, 5);
    const ExpertMap map = form.experts > 0 ? RandomExperts(form.config, form.experts, 6) : ExpertMap{};
    const auto vocab = static_cast<size_t>(form.config.vocab);
    for (const Number number : kAll) {
      const auto one = MakeExecutor(form.config, map, weights, number, 1);
      const auto two = MakeExecutor(form.config, map, weights, number, 2);
      const Text text = RandomText(form.config.vocab, form.experts, 70, 0, 7);
      const auto whole = RunWhole(*one, text);
      Text shuffled = text;
      shuffled.pages = {31, 4, 17, 8, 25};
      for (const int64_t size : {1, 7, 16, 33, 64}) {
        const Text other = RandomText(form.config.vocab, form.experts, 70, 10 + 0 * size, static_cast<uint32_t>(size));
        Text apart = other;
        apart.pages = {9, 10, 11, 12, 13};
        for (int64_t first = 0; first < 70; first += size) {
          const int64_t count = std::min<int64_t>(size, 70 - first), before = std::min<int64_t>(count, 3);
          TokenRun runs[] = {Piece(apart, 0, before), Piece(shuffled, first, count), Piece(text, 0, 0)};
          runs[0].logits_from = before - 1;
          std::vector<float> logits(static_cast<size_t>(count + 1) * vocab);
          const auto cost = two->Run(runs, logits);
          ASSERT_TRUE(cost) << cost.error().message;
          ASSERT_EQ(std::memcmp(logits.data() + vocab, whole.data() + static_cast<size_t>(first) * vocab,
                                static_cast<size_t>(count) * vocab * 4),
                    0)
              << form.name << " pieces of " << size << " at " << first;
        }
      }
    }
  }
}

TEST(CpuExecutor, CostsAreBytesTouched) {
  const Form form = Forms()[1];
  const Tensors weights = RandomWeights(form.config, 1);
  const ExpertMap map = RandomExperts(form.config, form.experts, 2);
  const auto executor = MakeExecutor(form.config, map, weights, Number::kF32, 1);
  Text text = RandomText(form.config.vocab, form.experts, 4, 0, 3);
  text.ids = {5, 6, 5, 7};
  text.experts = {1, 3, 3, 1};
  int64_t channels = 0, all = 0;
  for (const auto& layer : map.signatures)
    for (const kernels::Signature s : layer) channels += (s & 0xaU) != 0 ? 1 : 0, all += s != 0 ? 1 : 0;
  const int64_t record = 3 * 64 * 4;
  EXPECT_EQ(executor->FfnBytes(0xa), channels * record);
  EXPECT_EQ(executor->FfnBytes(0), 0);
  EXPECT_EQ(executor->FfnBytes(0x1f), all * record);
  // q, k, v: 120 rows are four panels; with their biases; o; two norms.
  const int64_t layer = 128 * 64 * 4 + 120 * 4 + 64 * 96 * 4 + 2 * 64 * 4, head = 128 * 64 * 4 + 64 * 4;
  EXPECT_EQ(executor->FixedBytes(), 2 * layer + head);
  TokenRun run = Piece(text, 0, 4);
  std::vector<float> logits(4 * 101);
  auto cost = executor->Run({&run, 1}, logits);
  EXPECT_EQ(cost->ffn_bytes, channels * record);
  EXPECT_EQ(cost->weight_bytes, channels * record + 2 * layer + head + 3 * 64 * 4) << "and three rows of the embedding";
  EXPECT_GT(cost->seconds, 0);
  run.logits_from = 4;
  cost = executor->Run({&run, 1}, {});
  EXPECT_EQ(cost->weight_bytes, channels * record + 2 * layer + 3 * 64 * 4) << "without logits no head";
}

TEST(CpuExecutor, GreedyIdsAreThoseOfTheLogits) {
  for (const Form& form : Forms()) {
    const Tensors weights = RandomWeights(form.config, 1);
    const ExpertMap map = form.experts > 0 ? RandomExperts(form.config, form.experts, 2) : ExpertMap{};
    for (const Number number : kAll) {
      const auto executor = MakeExecutor(form.config, map, weights, number, 2);
      const Text text = RandomText(form.config.vocab, form.experts, 40, 0, 3);
      const auto logits = RunWhole(*executor, text);
      TokenRun run = Piece(text, 0, 40);
      for (const int64_t from : {0, 39, 40}) {
        run.logits_from = from;
        std::vector<int64_t> best(static_cast<size_t>(40 - from));
        const auto cost = executor->RunGreedy({&run, 1}, best);
        ASSERT_TRUE(cost) << cost.error().message;
        EXPECT_GT(cost->seconds, 0);
        for (size_t i = 0; i < best.size(); ++i) {
          const auto row = logits.begin() + (from + static_cast<int64_t>(i)) * form.config.vocab;
          EXPECT_EQ(best[i], std::max_element(row, row + form.config.vocab) - row) << form.name << from << " " << i;
        }
      }
      std::vector<int64_t> short_of_one(39);
      run.logits_from = 0;
      EXPECT_EQ(executor->RunGreedy({&run, 1}, short_of_one).error().code, "E_SHAPE");
    }
  }
}

// What a greedy pass reads: a copy of the head instead of the head, of which only rows in doubt.
TEST(CpuExecutor, GreedyPassesReadLittleOfTheHead) {
  const Form form = Forms()[1];
  Tensors weights = RandomWeights(form.config, 1);
  const ExpertMap map = RandomExperts(form.config, form.experts, 2);
  const Text text = RandomText(form.config.vocab, form.experts, 4, 0, 3);
  for (const Number number : kAll) {
    const auto executor = MakeExecutor(form.config, map, weights, number, 1);
    TokenRun run = Piece(text, 0, 4);
    run.logits_from = 3;
    std::vector<float> logits(101);
    std::vector<int64_t> best(1);
    const int64_t whole = executor->Run({&run, 1}, logits)->weight_bytes;
    const int64_t greedy = executor->RunGreedy({&run, 1}, best)->weight_bytes;
    if (number == Number::kI8) {
      EXPECT_EQ(greedy, whole);
      continue;
    }
    // Four panels of 32 rows: bytes and two scales in each, a bound for each of the 101 rows.
    const int64_t panel = 32 * 64 * kernels::BytesOf(number), copy = 4 * (32 * 64 + 2 * 32 * 2) + 101 * 4;
    const int64_t of_head = greedy - (whole - 4 * panel) - copy;
    EXPECT_GE(of_head, 0);
    EXPECT_EQ(of_head % panel, 0);
    EXPECT_LT(of_head, 4 * panel);
  }
}

TEST(CpuExecutor, GreedyRowsThatAreNotFinite) {
  const Form form = Forms()[1];
  for (const char* const where : {"model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"}) {
    Tensors weights = RandomWeights(form.config, 1);
    if (!weights.values.contains(where)) continue;
    weights.values[where][7] = std::numeric_limits<float>::quiet_NaN();
    const auto executor =
        MakeExecutor(form.config, RandomExperts(form.config, form.experts, 2), weights, Number::kF32, 2);
    Text text = RandomText(form.config.vocab, form.experts, 4, 0, 3);
    text.ids = {1, 0, 2, 3};
    TokenRun run = Piece(text, 0, 4);
    run.logits_from = 3;
    std::vector<int64_t> best(1);
    ASSERT_TRUE(executor->RunGreedy({&run, 1}, best));
    EXPECT_EQ(best[0], kNoId) << where;
  }
}

// Routers in the layers that choose by their bias alone: expert 3 in the first layer, expert 1 in the second.
Tensors WithLayerRouters(const Form& form, float weight) {
  Tensors weights = RandomWeights(form.config, 1);
  std::mt19937 random(9);
  const int64_t rows = form.config.layers * form.experts;
  weights.AddNormal(random, "layer_router.weight", {rows, form.config.hidden_size}, weight);
  std::vector<float> bias(static_cast<size_t>(rows), 0);
  bias[3] = bias[static_cast<size_t>(form.experts) + 1] = weight > 0 ? 0 : 1;
  weights.Add("layer_router.bias", {rows}, bias);
  return weights;
}

TEST(CpuExecutor, LayersThatChooseForThemselves) {
  const Form form = Forms()[1];
  const ExpertMap map = RandomExperts(form.config, form.experts, 2);
  const auto executor = MakeExecutor(form.config, map, WithLayerRouters(form, 0), Number::kF32, 2);
  EXPECT_EQ(executor->shape().experts, 0) << "nobody knows them ahead";
  const auto channels = [&](size_t layer, uint32_t set) {
    return std::ranges::count_if(map.signatures[layer], [set](kernels::Signature s) { return (s & set) != 0; });
  };
  const int64_t record = 3 * 64 * 4;
  EXPECT_EQ(executor->FfnBytes(0), (channels(0, 31) + channels(1, 31)) * record);
  const Text text = RandomText(form.config.vocab, 0, 50, 0, 3);
  std::vector<float> logits(50 * 101);
  const TokenRun run = Piece(text, 0, 50);
  const auto cost = executor->Run({&run, 1}, logits);
  ASSERT_TRUE(cost) << cost.error().message;
  EXPECT_EQ(cost->ffn_bytes, (channels(0, 8) + channels(1, 2)) * record);
  // One expert for all is one mask per layer.
  ExpertMap mask{.experts = 1, .signatures = map.signatures, .order = {}};
  for (size_t l = 0; l < 2; ++l)
    for (kernels::Signature& s : mask.signatures[l]) s = (s >> (l == 0 ? 3U : 1U)) & 1U;
  const auto expected =
      RunWhole(*MakeExecutor(form.config, mask, RandomWeights(form.config, 1), Number::kF32, 1), text);
  for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], 1e-4) << i;
}

TEST(CpuExecutor, LayersThatChooseReadWhatTheyChose) {
  const Form form = Forms()[1];
  const ExpertMap map = RandomExperts(form.config, form.experts, 2);
  const auto one = MakeExecutor(form.config, map, WithLayerRouters(form, 1), Number::kF32, 1);
  const auto two = MakeExecutor(form.config, map, WithLayerRouters(form, 1), Number::kF32, 2);
  const Text text = RandomText(form.config.vocab, 0, 70, 0, 3);
  const auto whole = RunWhole(*one, text);
  std::vector<float> logits(7 * 101);
  for (int64_t first = 0; first < 70; first += 7) {
    const TokenRun run = Piece(text, first, 7);
    const auto cost = two->Run({&run, 1}, logits);
    ASSERT_TRUE(cost);
    ASSERT_EQ(std::memcmp(logits.data(), whole.data() + static_cast<size_t>(first) * 101, logits.size() * 4), 0)
        << first;
    EXPECT_GT(cost->ffn_bytes, 0);
    EXPECT_LE(cost->ffn_bytes, one->FfnBytes(0));
  }
}

TEST(CpuExecutor, BadCallsAreNamedAndTouchNothing) {
  const Form form = Forms()[1];
  const Tensors weights = RandomWeights(form.config, 1);
  const auto executor = MakeExecutor(form.config, RandomExperts(form.config, 5, 2), weights, Number::kF32, 1);
  const Text text = RandomText(form.config.vocab, 5, 40, 0, 3);
  const auto before = RunWhole(*executor, text);
  const auto fails = [&](auto change, const std::string& code, const std::string& message) {
    Text bad = text;
    std::vector<float> logits(40 * 101);
    TokenRun run = Piece(bad, 0, 40);
    change(bad, run, logits);
    const auto result = executor->Run({&run, 1}, logits);
    ASSERT_FALSE(result) << message;
    EXPECT_EQ(result.error().code, code);
    EXPECT_EQ(result.error().message, message);
  };
  using Logits = std::vector<float>;
  fails([](Text& t, TokenRun&, Logits&) { t.ids[3] = 101; }, "E_TOKEN", "run 0: found id 101, expected 0 to 100");
  fails([](Text& t, TokenRun&, Logits&) { t.experts[3] = 5; }, "E_EXPERTS", "run 0: found expert 5, expected 0 to 4");
  fails([](Text& t, TokenRun&, Logits&) { t.pages[1] = 40; }, "E_PAGES", "run 0: found page 40, expected 0 to 39");
  fails([](Text&, TokenRun& r, Logits&) { r.kv_pages = r.kv_pages.first(2); }, "E_PAGES",
        "run 0: found 2 pages for 40 tokens, expected 3");
  fails([](Text&, TokenRun& r, Logits&) { r.position = 161; }, "E_CONTEXT",
        "run 0: found positions 161 to 201, expected at most 200 tokens");
  fails([](Text&, TokenRun& r, Logits&) { r.experts = {}; }, "E_SHAPE",
        "run 0: found 0 experts for 40 tokens, expected one for each");
  fails([](Text&, TokenRun& r, Logits&) { r.logits_from = 41; }, "E_SHAPE",
        "run 0: logits_from: found 41, expected 0 to 40");
  fails([](Text&, TokenRun&, Logits& l) { l.pop_back(); }, "E_SHAPE",
        "logits: found 4039 numbers, expected 40 rows of 101");
  EXPECT_EQ(RunWhole(*executor, text), before);
  const auto none = executor->Run({}, {});
  ASSERT_TRUE(none);
  EXPECT_EQ(none->weight_bytes, 0);
}

TEST(CpuExecutor, TooManyTokensAndBadLimitsAreRefused) {
  const spec::Config config = TinyConfig();
  const Tensors weights = RandomWeights(config, 1);
  const auto make = [&](const PassLimits& limits) {
    return CpuExecutor::Make(CpuModel::Pack(config, {}, weights.source, Number::kF32).value(), limits,
                             std::make_shared<kernels::Workers>(1));
  };
  EXPECT_EQ(make({.context = 201, .kv_pages = 1, .step_tokens_max = 1}).error().message,
            "context: found 201, expected 1 to 200");
  EXPECT_EQ(make({.kv_pages = 0, .step_tokens_max = 1}).error().code, "E_LIMITS");
  const auto executor = make({.kv_pages = 4, .step_tokens_max = 8}).value();
  const Text text = RandomText(config.vocab, 0, 9, 0, 1);
  TokenRun run = Piece(text, 0, 9);
  run.logits_from = 9;
  EXPECT_EQ(executor->Run({&run, 1}, {}).error().message, "found 9 tokens, expected at most 8");
}

TEST(CpuModel, MissingAndMisshapenTensorsAreNamed) {
  const spec::Config config = TinyConfig();
  const auto error = [&](auto change) {
    Tensors weights = RandomWeights(config, 1);
    spec::Config changed = config;
    change(weights.source, changed);
    return CpuModel::Pack(changed, {}, weights.source, Number::kF32).error();
  };
  const auto missing = error([](WeightSource& s, spec::Config&) { s.erase("model.layers.1.self_attn.k_proj.weight"); });
  EXPECT_EQ(missing.code, "E_TENSORS");
  EXPECT_EQ(missing.message, "model.layers.1.self_attn.k_proj.weight: found none, expected a tensor of shape [24, 64]");
  const auto misshapen = error([](WeightSource& s, spec::Config&) { s["model.norm.weight"].shape = {64, 1}; });
  EXPECT_EQ(misshapen.code, "E_SHAPE");
  EXPECT_EQ(misshapen.message, "model.norm.weight: found F32 [64, 1], expected F32, BF16 or F16 [64]");
  EXPECT_EQ(error([](WeightSource&, spec::Config& c) { c.mlp_bias = true; }).code, "E_CONFIG");
  EXPECT_EQ(error([](WeightSource& s, spec::Config&) { s.erase("lm_head.weight"); }).message,
            "lm_head.weight: found none, expected a tensor of shape [101, 64]");
}

TEST(CpuModel, OrderOfChannelsIsChecked) {
  const spec::Config config = TinyConfig();
  const Tensors weights = RandomWeights(config, 1);
  ExpertMap map = RandomExperts(config, 2, 1);
  map.order[1][5] = map.order[1][6];
  EXPECT_EQ(CpuModel::Pack(config, map, weights.source, Number::kF32).error().code, "E_EXPERTS");
  map.order.pop_back();
  EXPECT_EQ(CpuModel::Pack(config, map, weights.source, Number::kF32).error().message,
            "signatures or order: found other sizes, expected 2 layers of 90 channels");
}

TEST(Weights, HalfPrecisionIsReadExactly) {
  const uint16_t f16[] = {0x3c00, 0xc000, 0x0001, 0x8400, 0x7bff, 0x3555}, bf16[] = {0x3f80, 0xc000, 0x0001};
  const WeightSource source = {{"h", {files::Dtype::kF16, {6}, f16}}, {"b", {files::Dtype::kBF16, {3}, bf16}}};
  EXPECT_EQ(FindVector(source, "h", 6).value(), (std::vector<float>{1, -2, 0x1p-24F, -0x1p-14F, 65504, 0x1.554p-2F}));
  EXPECT_EQ(FindVector(source, "b", 3).value(), (std::vector<float>{1, -2, 0x1p-133F}));
}

}  // namespace
}  // namespace outrider::serve::tests
