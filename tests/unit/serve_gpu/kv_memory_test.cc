#include "serve_gpu/kv_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serve_gpu/router_device.h"

namespace outrider::serve_gpu {
namespace {

using testing::HasSubstr;

constexpr int64_t kGb = 1'000'000'000;

spec::Config SevenB() {
  spec::Config config;
  config.hidden_size = 4096, config.layers = 32, config.heads = config.kv_heads = 32, config.head_dim = 128;
  config.ffn = 11008, config.vocab = 32'000, config.max_positions = 4096;
  return config;
}

TEST(KvPages, AShareOfWhatIsFree) {
  const spec::Config config = SevenB();
  EXPECT_EQ(KvPageBytes(config, 2), 16 * 32 * 2 * 4096 * 2);
  const auto pages = KvPages(config, 2, {.free_bytes = 100 * kGb, .percent = 50});
  ASSERT_TRUE(pages);
  const int64_t bytes = (*pages + 1) * KvPageBytes(config, 2) + PassBytes(config, 2);
  EXPECT_LE(bytes, 50 * kGb);
  EXPECT_GT(bytes + KvPageBytes(config, 2), 50 * kGb);
}

TEST(KvPages, TheRouterTakesItsPart) {
  const spec::Config config = SevenB();
  const KvBudget alone{.free_bytes = 50 * kGb, .texts_max = 10'000};
  KvBudget shared = alone;
  shared.beside_bytes = 5 * kGb;
  shared.beside_page_bytes = KvPageBytes(config, 2) / 10;
  const int64_t each = KvPageBytes(config, 2) + shared.beside_page_bytes;
  const auto pages = KvPages(config, 2, shared);
  ASSERT_TRUE(pages);
  const int64_t bytes = (*pages + 1) * each + PassBytes(config, 2) + shared.beside_bytes;
  EXPECT_LE(bytes, 45 * kGb);
  EXPECT_GT(bytes + each, 45 * kGb);
  EXPECT_LT(*pages, *KvPages(config, 2, alone) * 9 / 10);
}

TEST(KvPages, BytesOfARouter) {
  serve::RouterSpec spec;
  spec.vocab = 1000, spec.experts = 5, spec.width = 64;
  EXPECT_EQ(RouterPageBytes(spec), 2 * 16 * 64 * 4);
  const int64_t causal = RouterBytes(spec);
  EXPECT_EQ(causal, (1000 * 64 + (6 * 64 + 5) * 64 + 512 * (5 * 64 + 5)) * 4);
  spec.context = serve::RouterContext::kToken;
  EXPECT_EQ(RouterPageBytes(spec), 0);
  EXPECT_EQ(causal - RouterBytes(spec), 4 * 64 * 64 * 4);
}

TEST(KvPages, NoMoreThanRequestsCanFill) {
  EXPECT_EQ(*KvPages(SevenB(), 2, {.free_bytes = 100 * kGb, .texts_max = 4}), 4 * 256);
}

TEST(KvPages, WhatIsAskedForIsTakenOrRefused) {
  EXPECT_EQ(*KvPages(SevenB(), 2, {.pages = 1000, .free_bytes = 100 * kGb}), 1000);
  const auto refused = KvPages(SevenB(), 2, {.pages = 100'000, .free_bytes = 100 * kGb});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "E_MEMORY");
  EXPECT_THAT(refused.error().message, HasSubstr("found 100.00 GB free beside the weights, expected at least 839."));
  EXPECT_THAT(refused.error().message, HasSubstr("for 1600000 tokens; ask for at most kv_tokens="));
}

TEST(KvPages, NoRoomAtAllAndNoShareAreNamed) {
  const auto refused = KvPages(SevenB(), 2, {.free_bytes = 200'000'000});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "E_MEMORY");
  EXPECT_THAT(refused.error().message, HasSubstr("found 0.20 GB free"));
  EXPECT_THAT(refused.error().message, HasSubstr("or serve with the device cpu"));
  for (const int64_t percent : {0, 101}) {
    const auto share = KvPages(SevenB(), 2, {.free_bytes = 100 * kGb, .percent = percent});
    ASSERT_FALSE(share);
    EXPECT_EQ(share.error().code, "E_OPTION");
  }
}

}  // namespace
}  // namespace outrider::serve_gpu
