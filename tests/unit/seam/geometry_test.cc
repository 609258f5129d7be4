#include "seam/geometry.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

namespace outrider::seam {
namespace {

Geometry Of(const torch::Tensor& tensor) { return Geometry::Of(*tensor.unsafeGetTensorImpl()); }
uint64_t LayoutOf(const torch::Tensor& tensor) { return HashLayout(1, *tensor.unsafeGetTensorImpl()); }

TEST(Geometry, EqualityLooksAtEverythingThatAKernelSees) {
  const auto tensor = torch::zeros({2, 3});
  EXPECT_EQ(Of(tensor), Of(torch::ones({2, 3})));
  EXPECT_TRUE(Of(tensor).Matches(*torch::ones({2, 3}).unsafeGetTensorImpl()));
  for (const auto& other : {torch::zeros({3, 2}), torch::zeros({3, 2}).t(), torch::zeros({2, 3}, torch::kDouble),
                            torch::zeros({3, 3}).slice(0, 1), torch::zeros({6})}) {
    EXPECT_NE(Of(tensor), Of(other)) << other.sizes();
    EXPECT_FALSE(Of(tensor).Matches(*other.unsafeGetTensorImpl()));
  }
}

TEST(Geometry, WrappedNumbersDifferFromTensors) {
  const auto tensor = torch::scalar_tensor(1.0, torch::kDouble);
  const auto number = tensor.clone();
  number.unsafeGetTensorImpl()->set_wrapped_number(true);
  EXPECT_NE(Of(tensor), Of(number));
}

TEST(Geometry, TextNamesTypeAndSizes) { EXPECT_EQ(Of(torch::zeros({2, 3})).Text(), "Float[2,3]"); }

TEST(Geometry, EndByteCountsGapsAndOffset) {
  EXPECT_EQ(EndByte(Of(torch::zeros({2, 3}))), 24u);
  EXPECT_EQ(EndByte(Of(torch::zeros({4, 4}).slice(1, 1, 3))), 15u * 4);
  EXPECT_EQ(EndByte(Of(torch::zeros({0, 5}))), 0u);
}

TEST(Geometry, LayoutForgetsMagnitudesOnly) {
  EXPECT_EQ(LayoutOf(torch::zeros({2, 3})), LayoutOf(torch::zeros({5, 7})));
  EXPECT_NE(LayoutOf(torch::zeros({2, 3})), LayoutOf(torch::zeros({3, 2}).t()));
  EXPECT_NE(LayoutOf(torch::zeros({2, 3})), LayoutOf(torch::zeros({2, 1})));
  EXPECT_NE(LayoutOf(torch::zeros({2, 3})), LayoutOf(torch::zeros({2, 3}, torch::kHalf)));
}

TEST(Geometry, AliasHasTheBytesAndNoTies) {
  auto tensor = torch::arange(6, torch::kFloat).view({2, 3}).requires_grad_();
  const auto view = tensor.slice(1, 1);
  const auto alias = AliasTensor(view.unsafeGetTensorImpl()->unsafe_storage(), *view.unsafeGetTensorImpl());
  EXPECT_EQ(alias.const_data_ptr(), view.const_data_ptr());
  EXPECT_EQ(alias.strides(), view.strides());
  EXPECT_FALSE(alias.requires_grad());
  const auto version = tensor._version();
  alias.fill_(0);
  EXPECT_EQ(tensor._version(), version);
}

TEST(Geometry, PlainMeansDenseAndStrided) {
  EXPECT_TRUE(IsPlainStrided(*torch::zeros({2}).unsafeGetTensorImpl()));
  EXPECT_FALSE(IsPlainStrided(*torch::zeros({2}).to_sparse().unsafeGetTensorImpl()));
  EXPECT_FALSE(IsPlainStrided(*torch::quantize_per_tensor(torch::zeros({2}), 1.0, 0, torch::kQInt8).unsafeGetTensorImpl()));
}

}  // namespace
}  // namespace outrider::seam
