// Copies look to a kernel like what they are copies of.

#include "seam/storage_copy.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "seam/geometry.h"

namespace outrider::seam {
namespace {

constexpr uintptr_t kAlignment = 64;  // bytes

uintptr_t Misalignment(const torch::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAlignment;
}

TEST(PrivateCopy, KeepsStridesAndAlignmentOfViews) {
  const auto base = torch::arange(60, torch::kFloat).view({6, 10});
  for (const auto& view : {base, base.t(), base.slice(1, 3, 9, 2), base[4].slice(0, 1), base.select(1, 7)}) {
    const auto copy = PrivateCopy(*view.unsafeGetTensorImpl());
    EXPECT_EQ(copy.sizes(), view.sizes());
    EXPECT_EQ(copy.strides(), view.strides());
    EXPECT_EQ(Misalignment(copy), Misalignment(view));
    EXPECT_TRUE(torch::equal(copy, view));
  }
}

TEST(PrivateCopy, SeesNoLaterWrite) {
  const auto original = torch::ones({4});
  const auto copy = PrivateCopy(*original.unsafeGetTensorImpl());
  original.fill_(2);
  EXPECT_TRUE(torch::equal(copy, torch::ones({4})));
}

TEST(PrivateCopy, OfNothingIsNothing) {
  const auto original = torch::empty({0, 3});
  const auto copy = PrivateCopy(*original.unsafeGetTensorImpl());
  EXPECT_EQ(copy.sizes(), original.sizes());
  EXPECT_EQ(copy.numel(), 0);
}

TEST(StorageCopy, OverwritingReachesTheSameBytes) {
  const auto target = torch::zeros({3}, torch::kLong), source = torch::arange(3);
  const auto alias = AliasStorage(target.unsafeGetTensorImpl()->unsafe_storage());
  EXPECT_EQ(alias.data(), target.const_data_ptr());
  OverwriteStorage(alias, source.unsafeGetTensorImpl()->unsafe_storage());
  EXPECT_TRUE(torch::equal(target, source));
}

TEST(StorageCopy, ManyAtOnceAreEachCopied) {
  const auto a = torch::arange(3), b = torch::ones({5}, torch::kHalf), nothing = torch::empty({0});
  std::vector<c10::Storage> storages;
  for (const auto& tensor : {a, nothing, b}) storages.push_back(tensor.unsafeGetTensorImpl()->unsafe_storage());
  const auto copies = CopyBytes(storages);
  ASSERT_EQ(copies.size(), 3u);
  EXPECT_EQ(copies[1].numel(), 0);
  const auto before_a = a.clone(), before_b = b.clone();
  a.zero_();
  b.zero_();
  OverwriteStorage(storages[0], copies[0]);
  OverwriteStorage(storages[2], copies[2]);
  EXPECT_TRUE(torch::equal(a, before_a));
  EXPECT_TRUE(torch::equal(b, before_b));
  EXPECT_TRUE(CopyBytes({}).empty());
}

TEST(StorageCopy, CopyIsElsewhere) {
  const auto source = torch::arange(3);
  const auto copy = CopyStorage(source.unsafeGetTensorImpl()->unsafe_storage());
  EXPECT_NE(copy.data(), source.const_data_ptr());
  EXPECT_TRUE(torch::equal(AliasTensor(copy, *source.unsafeGetTensorImpl()), source));
}

}  // namespace
}  // namespace outrider::seam
