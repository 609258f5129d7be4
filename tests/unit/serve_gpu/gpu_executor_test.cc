// The reference form on the CPU in fp32, against the CPU executor.
#include "serve_gpu/gpu_executor.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "unit/serve/cpu_support.h"

namespace outrider::serve_gpu::tests {
namespace {

using namespace serve::tests;
using serve::ExpertMap;
using serve::TokenRun;

model::Parameters ParametersOf(const spec::Config& config, const Tensors& weights) {
  model::Parameters parameters;
  for (const model::NamedTensor& t : model::NamedTensors(config, parameters))
    *t.tensor = at::from_blob(const_cast<float*>(weights.at(t.name).data()), t.shape, at::kFloat).clone();
  return parameters;
}

std::unique_ptr<GpuExecutor> MakeGpu(const Form& form, const ExpertMap& map, const Tensors& weights, bool exact) {
  auto model = GpuModel::Pack(form.config, map, ParametersOf(form.config, weights), at::kCPU, at::kFloat);
  EXPECT_TRUE(model) << model.error().message;
  auto made = GpuExecutor::Make(*std::move(model), {.kv_pages = 40, .step_tokens_max = 160}, {.exact = exact});
  EXPECT_TRUE(made) << made.error().message;
  return *std::move(made);
}

float Largest(const std::vector<float>& numbers) {
  float most = 0;
  for (const float v : numbers) most = std::max(most, std::abs(v));
  return most;
}

struct Case {
  Form form;
  Tensors weights;
  ExpertMap map;
  Text text;

  explicit Case(const Form& f, int64_t tokens = 70)
      : form(f),
        weights(RandomWeights(f.config, 1)),
        map(f.experts > 0 ? RandomExperts(f.config, f.experts, 2) : ExpertMap{}),
        text(RandomText(f.config.vocab, f.experts, tokens, 0, 7)) {}
};

TEST(GpuExecutor, ReferenceAgreesWithTheCpu) {
  for (const Form& form : Forms()) {
    const Case c(form);
    const auto expected = RunWhole(*MakeExecutor(form.config, c.map, c.weights, kernels::Number::kF32, 1), c.text);
    const float tolerance = 1e-5F * Largest(expected);
    for (const bool exact : {true, false}) {
      const auto found = RunWhole(*MakeGpu(form, c.map, c.weights, exact), c.text);
      for (size_t i = 0; i < expected.size(); ++i)
        ASSERT_NEAR(found[i], expected[i], tolerance) << form.name << " number " << i;
    }
  }
}

TEST(GpuExecutor, LibraryProductsOfADenseModelAgreeWithTheCpu) {
  int dense = 0;
  for (const Form& form : Forms()) {
    const Case c(form);
    auto model = *GpuModel::Pack(form.config, c.map, ParametersOf(form.config, c.weights), at::kCPU, at::kFloat);
    const serve::PassLimits limits{.kv_pages = 40, .step_tokens_max = 160};
    const auto without = GpuExecutor::Make(model, limits, {.library = true});
    ASSERT_FALSE(without);
    EXPECT_EQ(without.error().code, "E_CONFIG");
    const auto added = model.AddLibraryFfn();
    if (form.experts > 1) {
      EXPECT_EQ(added.error().message, "library: found a model with experts, expected a dense one");
      continue;
    }
    ++dense;
    const auto expected = RunWhole(*MakeExecutor(form.config, c.map, c.weights, kernels::Number::kF32, 1), c.text);
    const auto found = RunWhole(**GpuExecutor::Make(model, limits, {.library = true}), c.text);
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(found[i], expected[i], 1e-5F * Largest(expected)) << form.name << " number " << i;
  }
  EXPECT_GT(dense, 0);
}

// Each channel lies somewhere, with its signature.
TEST(GpuModel, ChannelsAreDealt) {
  const Case c(Forms()[1]);
  const auto parameters = ParametersOf(c.form.config, c.weights);
  const auto model = *GpuModel::Pack(c.form.config, c.map, parameters, at::kCPU, at::kFloat);
  for (size_t l = 0; l < model.layers().size(); ++l) {
    const auto live = *serve::LiveChannelsOf(c.form.config, c.map, static_cast<int64_t>(l));
    const GpuLayer& layer = model.layers()[l];
    ASSERT_EQ(layer.records.size(0), static_cast<int64_t>(live.channels.size()));
    std::vector<int> seen(live.channels.size(), 0);
    const auto width = static_cast<size_t>(layer.records.size(2));
    for (int64_t r = 0; r < layer.records.size(0); ++r) {
      const float* gate = layer.records.const_data_ptr<float>() + static_cast<size_t>(r) * 3 * width;
      const auto same = std::ranges::find_if(live.channels, [&](int32_t channel) {
        const at::Tensor row = parameters.layers[l].gate.select(0, channel);
        return std::equal(gate, gate + width, row.const_data_ptr<float>());
      });
      ASSERT_NE(same, live.channels.end());
      const auto i = static_cast<size_t>(same - live.channels.begin());
      EXPECT_EQ(std::exchange(seen[i], 1), 0);
      EXPECT_EQ(static_cast<kernels::Signature>(layer.signatures.const_data_ptr<int16_t>()[r]), live.signatures[i]);
    }
  }
}

// Pieces of the text beside pieces of another one, in pages in any order.
TEST(GpuExecutor, PiecesAndNeighboursChangeNothing) {
  for (const Form& form : Forms()) {
    const Case c(form);
    const auto executor = MakeGpu(form, c.map, c.weights, true);
    const auto vocab = static_cast<size_t>(form.config.vocab);
    const auto whole = RunWhole(*executor, c.text);
    Text shuffled = c.text, apart = RandomText(form.config.vocab, form.experts, 70, 10, 9);
    shuffled.pages = {31, 4, 17, 8, 25};
    apart.pages = {9, 10, 11, 12, 13};
    for (const int64_t size : {1, 7, 33}) {
      for (int64_t first = 0; first < 70; first += size) {
        const int64_t count = std::min<int64_t>(size, 70 - first), before = std::min<int64_t>(count, 3);
        TokenRun runs[] = {Piece(apart, 0, before), Piece(shuffled, first, count)};
        runs[0].logits_from = before - 1;
        std::vector<float> logits(static_cast<size_t>(count + 1) * vocab);
        ASSERT_TRUE(executor->Run(runs, logits));
        for (size_t i = 0; i < static_cast<size_t>(count) * vocab; ++i)
          ASSERT_NEAR(logits[vocab + i], whole[static_cast<size_t>(first) * vocab + i], 1e-5F * Largest(whole))
              << form.name << " pieces of " << size << " at " << first;
      }
    }
  }
}

TEST(GpuExecutor, GreedyIdsAreThoseOfTheLogitsAndEachGroupWaitsOnce) {
  const Case c(Forms()[1]);
  const auto executor = MakeGpu(c.form, c.map, c.weights, true);
  const auto logits = RunWhole(*executor, c.text);
  const int64_t before = executor->host_waits();
  const TokenRun run = Piece(c.text, 0, 70);
  std::vector<int64_t> best(70);
  ASSERT_TRUE(executor->RunGreedy({&run, 1}, best));
  EXPECT_EQ(executor->host_waits() - before, 3);  // 32 + 32 + 6 tokens
  for (size_t t = 0; t < best.size(); ++t) {
    const auto row = logits.begin() + static_cast<int64_t>(t) * 101;
    EXPECT_EQ(best[t], std::max_element(row, row + 101) - row);
  }
}

// A piece whose first tokens, up to `prompt` of the whole text, belong to the prompt.
TokenRun PromptPiece(const Text& text, int64_t first, int64_t count, int64_t prompt) {
  TokenRun run = Piece(text, first, count);
  run.prompt = std::clamp<int64_t>(prompt - first, 0, count);
  return run;
}

// Prompts in chunks, cut anywhere and beside others, and what was written behind them: rows in the order of the runs.
TEST(GpuExecutor, PromptsAgreeWithTheCpuHoweverTheyAreCut) {
  constexpr int64_t kPrompt = 61, kTokens = 70;
  for (const Form& form : Forms()) {
    const Case c(form);
    const auto expected = RunWhole(*MakeExecutor(form.config, c.map, c.weights, kernels::Number::kF32, 1), c.text);
    const float tolerance = 1e-5F * Largest(expected);
    const Text apart = RandomText(form.config.vocab, form.experts, 70, 10, 9);
    const auto vocab = static_cast<size_t>(form.config.vocab);
    const auto executor = MakeGpu(form, c.map, c.weights, true);
    EXPECT_TRUE(executor->shape().prompts_apart);
    for (const int64_t size : {11, 33, 70}) {
      for (int64_t first = 0; first < kTokens; first += size) {
        const int64_t count = std::min(size, kTokens - first), before = std::min<int64_t>(count, 3);
        TokenRun runs[] = {PromptPiece(apart, 0, before, before), PromptPiece(c.text, first, count, kPrompt),
                           PromptPiece(apart, before, 2, 0)};
        runs[0].logits_from = before - 1;
        runs[2].logits_from = 1;
        std::vector<float> logits(static_cast<size_t>(count + 2) * vocab);
        const auto cost = executor->Run(runs, logits);
        ASSERT_TRUE(cost) << cost.error().message;
        EXPECT_GE(cost->weight_bytes, 2 * executor->FixedBytes()) << "both paths read the weights";
        EXPECT_GT(cost->prompt_seconds, 0);
        EXPECT_LT(cost->prompt_seconds, cost->seconds);
        for (size_t i = 0; i < static_cast<size_t>(count) * vocab; ++i)
          ASSERT_NEAR(logits[vocab + i], expected[static_cast<size_t>(first) * vocab + i], tolerance)
              << form.name << " pieces of " << size << " at " << first;
      }
    }
  }
}

TEST(GpuExecutor, AChunkWaitsOnceAndForEachTileOfLogits) {
  const Case c(Forms()[1]);
  const auto executor = MakeGpu(c.form, c.map, c.weights, true);
  TokenRun run = PromptPiece(c.text, 0, 70, 70);
  for (const auto& [from, waits] : {std::pair{70, 1}, std::pair{69, 1}, std::pair{0, 3}}) {
    run.logits_from = from;
    std::vector<int64_t> best(static_cast<size_t>(70 - from));
    const int64_t before = executor->host_waits();
    ASSERT_TRUE(executor->RunGreedy({&run, 1}, best));
    EXPECT_EQ(executor->host_waits() - before, waits) << from;
  }
}

// Passes everything on until it is told to fail as a library does.
class Failing final : public Device {
 public:
  Failing(std::unique_ptr<Device> inner, const bool& fails) : inner_(std::move(inner)), fails_(fails) {}
  void Attend(const Rows& rows, const AttendCall& call) override { inner_->Attend(rows, call); }
  void Ffn(const Rows& rows, const GpuLayer& layer, int64_t count, const at::Tensor& x, const at::Tensor& y) override {
    inner_->Ffn(rows, layer, count, x, y);
  }
  void Likeliest(const at::Tensor& logits, const at::Tensor& best) override { inner_->Likeliest(logits, best); }
  void Run(int kind, const std::function<void()>& body) override { inner_->Run(kind, body); }
  void RunChunk(const Rows& rows, int64_t count, const std::function<void()>& body) override {
    inner_->RunChunk(rows, count, body);
  }
  void RunBehind(const std::function<void()>& body) override { inner_->RunBehind(body); }
  const void* Fetch(const at::Tensor& from, int64_t first, int64_t count) override {
    TORCH_CHECK(!fails_, "CUDA error: an illegal memory access was encountered");
    return inner_->Fetch(from, first, count);
  }
  int32_t* staging() override { return inner_->staging(); }
  int32_t* chunk_staging() override { return inner_->chunk_staging(); }
  int64_t waits() const override { return inner_->waits(); }

 private:
  const std::unique_ptr<Device> inner_;
  const bool& fails_;
};

TEST(GpuExecutor, AFailedCallLosesTheDeviceForGood) {
  const Case c(Forms()[1]);
  bool fails = false;
  PassForm form;
  form.wrap = [&](std::unique_ptr<Device> inner) { return std::make_unique<Failing>(std::move(inner), fails); };
  auto model = GpuModel::Pack(c.form.config, c.map, ParametersOf(c.form.config, c.weights), at::kCPU, at::kFloat);
  const auto executor =
      *GpuExecutor::Make(*std::move(model), {.kv_pages = 40, .route_pages = 40, .step_tokens_max = 160}, form);
  RunWhole(*executor, c.text);
  for (const int64_t prompt : {70, 0}) {
    fails = true;
    std::vector<float> logits(70 * 101);
    const TokenRun run = PromptPiece(c.text, 0, 70, prompt);
    const auto failed = executor->Run({&run, 1}, logits);
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code, "E_DEVICE");
    EXPECT_NE(failed.error().message.find("an illegal memory access"), std::string::npos);
    fails = false;
    EXPECT_EQ(executor->Run({&run, 1}, logits).error().code, "E_DEVICE") << "it is not tried again";
  }
}

TEST(GpuExecutor, BytesAreThoseOfTheChannels) {
  const Case c(Forms()[1]);
  const auto gpu = MakeGpu(c.form, c.map, c.weights, true);
  const auto cpu = MakeExecutor(c.form.config, c.map, c.weights, kernels::Number::kF32, 1);
  for (const uint16_t set : {0x0, 0x2, 0xa, 0x1f}) EXPECT_EQ(gpu->FfnBytes(set), cpu->FfnBytes(set)) << set;
}

TEST(GpuExecutor, BadCallsAreNamedAndTouchNothing) {
  Case c(Forms()[1]);
  const auto executor = MakeGpu(c.form, c.map, c.weights, true);
  const auto before = RunWhole(*executor, c.text);
  const auto error = [&](auto change) {
    Text bad = c.text;
    std::vector<float> logits(70 * 101);
    TokenRun run = Piece(bad, 0, 70);
    change(bad, run, logits);
    return executor->Run({&run, 1}, logits).error().message;
  };
  using Logits = std::vector<float>;
  EXPECT_EQ(error([](Text& t, TokenRun&, Logits&) { t.ids[3] = 101; }), "run 0: found id 101, expected 0 to 100");
  EXPECT_EQ(error([](Text& t, TokenRun&, Logits&) { t.experts[3] = 5; }), "run 0: found expert 5, expected 0 to 4");
  EXPECT_EQ(error([](Text&, TokenRun&, Logits& l) { l.pop_back(); }),
            "logits: found 7069 numbers, expected 70 rows of 101");
  EXPECT_EQ(RunWhole(*executor, c.text), before);
}

TEST(GpuDevice, WithoutCudaTheReasonIsNamed) {
  const auto ok = CheckCuda();
  if (ok) GTEST_SKIP() << "this machine has one";
  EXPECT_EQ(ok.error().code, "E_CUDA");
}

}  // namespace
}  // namespace outrider::serve_gpu::tests
