#include "serve_gpu/deal.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace outrider::serve_gpu::tests {
namespace {

using kernels::Signature;

// Channels with a popularity of their own: what experts share, as in real masks.
std::vector<Signature> Draw(size_t channels, int experts, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform;
  std::vector<Signature> made(channels);
  for (Signature& s : made) {
    const double popularity = uniform(random);
    for (int e = 0; e < experts; ++e) s = static_cast<Signature>(s | (uniform(random) < popularity ? 1U << e : 0U));
  }
  std::ranges::sort(made);
  return made;
}

int64_t Of(int e, const std::vector<Signature>& signatures, const std::vector<int64_t>& order, int64_t first,
           int64_t last) {
  int64_t count = 0;
  for (int64_t i = first; i < last; ++i)
    count += signatures[static_cast<size_t>(order[static_cast<size_t>(i)])] >> e & 1;
  return count;
}

TEST(DealtOrder, HasEachChannelOnceAndKeepsGroupsTogether) {
  for (const size_t channels : {1, 15, 16, 100, 1000}) {
    const std::vector<int64_t> order = DealtOrder(Draw(channels, 4, 1));
    std::vector<int64_t> sorted = order;
    std::ranges::sort(sorted);
    ASSERT_EQ(sorted.size(), channels);
    for (size_t i = 0; i < channels; ++i) EXPECT_EQ(sorted[i], static_cast<int64_t>(i));
    for (size_t i = 0; i < channels; ++i) {
      if (i % kGroup == 0) {
        EXPECT_EQ(order[i] % kGroup, 0);
      } else {
        EXPECT_EQ(order[i], order[i - 1] + 1);
      }
    }
  }
}

TEST(DealtOrder, EachHandHasAsMuchOfEveryExpert) {
  constexpr int64_t kChannels = 11008;
  const std::vector<Signature> signatures = Draw(kChannels, 8, 2);
  const std::vector<int64_t> order = DealtOrder(signatures);
  constexpr int64_t kGroups = kChannels / kGroup;
  for (int e = 0; e < 8; ++e) {
    int64_t most = 0;
    for (int64_t h = 0; h < kHands; ++h)
      most =
          std::max(most, Of(e, signatures, order, kGroups * h / kHands * kGroup, kGroups * (h + 1) / kHands * kGroup));
    const auto mean = static_cast<double>(Of(e, signatures, order, 0, kChannels)) / kHands;
    EXPECT_LT(static_cast<double>(most), 1.1 * mean) << "expert " << e;
  }
}

}  // namespace
}  // namespace outrider::serve_gpu::tests
