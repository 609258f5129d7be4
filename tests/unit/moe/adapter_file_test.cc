#include "moe/adapter_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "moe/tensor_file.h"

namespace outrider::moe {
namespace {

using testing::HasSubstr;

constexpr int64_t kRank = 3;

model::Config Small() {
  model::Config config;
  config.model_type = "llama";
  config.hidden_size = 16;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 4;
  config.ffn = 24;
  config.vocab = 40;
  config.max_positions = 32;
  config.windows = {0, 0};
  config.tied = true;
  return config;
}

// Pairs whose sizes differ by orders of magnitude, one of them zero.
Adapter Some() {
  at::manual_seed(3);
  std::vector<AdapterPair> pairs;
  model::Parameters none;
  for (const model::NamedTensor& t : model::NamedTensors(Small(), none)) {
    if (!Adapter::Pairs(t)) continue;
    const double size = std::pow(10.0, -static_cast<double>(pairs.size() % 4));
    const at::Tensor b = pairs.size() == 5 ? at::zeros({t.shape[0], kRank}) : at::randn({t.shape[0], kRank}) * size;
    pairs.push_back({t.name, at::randn({kRank, t.shape[1]}) * 0.02, b});
  }
  return Adapter(std::move(pairs));
}

class AdapterFileTest : public testing::Test {
 protected:
  std::string path_ = testing::TempDir() + "outrider_adapter_file.safetensors";
  void TearDown() override { std::filesystem::remove(path_); }

  std::string Message() const {
    const auto loaded = LoadAdapter(path_, Small(), at::kCPU);
    return loaded ? "none" : loaded.error().code + ": " + loaded.error().message;
  }
  // What reading says of a file with these changes.
  std::string After(const std::string& dtype, const std::function<void(TensorFile&)>& change) const {
    EXPECT_TRUE(SaveAdapter(path_, Some(), {.rank = kRank, .dtype = dtype, .base_sha256 = "ab"}));
    TensorFile file = *LoadTensors(path_);
    change(file);
    EXPECT_TRUE(SaveTensors(path_, file.tensors, file.metadata));
    return Message();
  }
};

TEST_F(AdapterFileTest, Bfloat16ComesBackRounded) {
  const Adapter adapter = Some();
  ASSERT_TRUE(SaveAdapter(path_, adapter, {.rank = kRank, .dtype = "bfloat16", .base_sha256 = "ab"}));
  const auto loaded = LoadAdapter(path_, Small(), at::kCPU);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->second.rank, kRank);
  EXPECT_EQ(loaded->second.dtype, "bfloat16");
  EXPECT_EQ(loaded->second.base_sha256, "ab");
  ASSERT_EQ(loaded->first.pairs().size(), adapter.pairs().size());
  for (size_t i = 0; i < adapter.pairs().size(); ++i) {
    const AdapterPair &found = loaded->first.pairs()[i], &given = adapter.pairs()[i];
    EXPECT_EQ(found.weight, given.weight);
    EXPECT_TRUE(at::equal(found.a, given.a.to(at::kBFloat16).to(at::kFloat)));
    EXPECT_TRUE(at::equal(found.b, given.b.to(at::kBFloat16).to(at::kFloat)));
  }
}

TEST_F(AdapterFileTest, Int8KeepsEveryProductToTheStepOfItsRows) {
  const Adapter adapter = Some();
  ASSERT_TRUE(SaveAdapter(path_, adapter, {.rank = kRank, .dtype = "int8", .base_sha256 = ""}));
  const auto loaded = LoadAdapter(path_, Small(), at::kCPU);
  ASSERT_TRUE(loaded) << loaded.error().message;
  for (size_t i = 0; i < adapter.pairs().size(); ++i) {
    const AdapterPair &found = loaded->first.pairs()[i], &given = adapter.pairs()[i];
    // a and b come back up to a factor that moves between them: their product is what counts. Each factor is off by at
    // most half a step of its row, and its scale by half a unit of its last place.
    const at::Tensor error = (at::mm(found.b, found.a) - at::mm(given.b, given.a)).abs();
    const double step = 0.5 / 127 + 1.0 / 2048;
    const at::Tensor rows_b = std::get<0>(given.b.abs().max(1, true));
    const at::Tensor rows_a = std::get<0>(given.a.abs().max(1, true));
    const at::Tensor bound = at::mm(given.b.abs(), (rows_a * step).expand_as(given.a)) +
                             at::mm((rows_b * step).expand_as(given.b), given.a.abs() + rows_a * step);
    EXPECT_TRUE((error <= bound + 1e-12).all().item<bool>()) << given.weight;
  }
  EXPECT_TRUE(at::equal(loaded->first.pairs()[5].b, at::zeros_like(adapter.pairs()[5].b)));
}

TEST_F(AdapterFileTest, AnUntunedAdapterStaysZero) {
  std::vector<AdapterPair> pairs = Some().pairs();
  for (AdapterPair& pair : pairs) pair.b = at::zeros_like(pair.b);
  ASSERT_TRUE(SaveAdapter(path_, Adapter(pairs), {.rank = kRank, .dtype = "int8", .base_sha256 = ""}));
  const auto loaded = LoadAdapter(path_, Small(), at::kCPU);
  ASSERT_TRUE(loaded) << loaded.error().message;
  for (const AdapterPair& pair : loaded->first.pairs()) EXPECT_FALSE(pair.b.any().item<bool>()) << pair.weight;
}

TEST_F(AdapterFileTest, Int8IsHalfAsLarge) {
  ASSERT_TRUE(SaveAdapter(path_, Some(), {.rank = kRank, .dtype = "int8", .base_sha256 = ""}));
  int64_t bytes = 0, values = 0;
  const auto file = LoadTensors(path_);
  ASSERT_TRUE(file);
  for (const NamedTensor& t : file->tensors) {
    bytes += static_cast<int64_t>(t.tensor.nbytes());
    if (!t.name.ends_with(".scale")) values += t.tensor.numel();
  }
  EXPECT_EQ(bytes, values + 2 * 2 * (7 * kRank + 16 + 8 + 8 + 16 + 24 + 24 + 16));
}

TEST_F(AdapterFileTest, WhatDoesNotFitIsNamed) {
  const std::string down = "model.layers.1.mlp.down_proj.weight";
  const auto tensor = [](TensorFile& file, const std::string& name) -> at::Tensor& {
    return std::ranges::find(file.tensors, name, &NamedTensor::name)->tensor;
  };
  const auto drop = [](TensorFile& file, const std::string& name) {
    std::erase_if(file.tensors, [&](const NamedTensor& t) { return t.name == name; });
  };
  EXPECT_THAT(After("bfloat16", [&](TensorFile& f) { drop(f, down + ".b"); }),
              HasSubstr("E_ADAPTER: " + path_ + ": " + down + ": found one half of a pair"));
  EXPECT_THAT(After("bfloat16", [&](TensorFile& f) { tensor(f, down + ".a") = at::zeros({kRank, 23}, at::kBFloat16); }),
              HasSubstr(down + ".a: found shape [3, 23], expected [3, 24]"));
  EXPECT_THAT(After("bfloat16", [&](TensorFile& f) { tensor(f, down + ".a").fill_(NAN); }),
              HasSubstr(down + ".a: found a value that is NaN or infinite"));
  EXPECT_THAT(After("bfloat16", [&](TensorFile& f) { f.tensors.push_back({"lm_head.weight.a", at::zeros({3, 16})}); }),
              HasSubstr("lm_head.weight.a: found a tensor of no weight"));
  EXPECT_THAT(After("int8", [&](TensorFile& f) { drop(f, down + ".b.scale"); }),
              HasSubstr(down + ".b.scale: found none"));
  EXPECT_THAT(After("int8", [&](TensorFile& f) { f.metadata["dtype"] = "bfloat16"; }), HasSubstr("expected BF16"));
  EXPECT_THAT(After("bfloat16", [&](TensorFile& f) { f.metadata["dtype"] = "int4"; }),
              HasSubstr("dtype: found \"int4\", expected bfloat16 or int8"));
  EXPECT_THAT(After("bfloat16", [&](TensorFile& f) { f.metadata["rank"] = "many"; }),
              HasSubstr("rank: found \"many\""));
  EXPECT_THAT(After("bfloat16", [&](TensorFile& f) { f.metadata["scale"] = "inf"; }),
              HasSubstr("scale: found \"inf\""));
  EXPECT_THAT(After("bfloat16", [&](TensorFile& f) { f.metadata.erase("format"); }), HasSubstr("format: found \"\""));
  EXPECT_EQ(After("bfloat16", [&](TensorFile& f) { drop(f, down + ".a"), drop(f, down + ".b"); }), "none")
      << "not every weight needs a pair";
}

}  // namespace
}  // namespace outrider::moe
