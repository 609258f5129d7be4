// Attention on a device says where in the generator's sequence it began, as numbers of the host, also where it drew nothing.

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "seam/shape_inference.h"
#include "seam/signature.h"

namespace outrider::seam {
namespace {

// A call of memory-efficient attention on a device other than the CPU; Meta stands for it.
class IdlePosition : public testing::Test {
 protected:
  Call Attention(double dropout) {
    OpInfo& info = InfoOf(c10::Dispatcher::singleton().findSchemaOrThrow("aten::_scaled_dot_product_efficient_attention", ""));
    args_ = {query_, query_, query_, c10::IValue(), true, dropout, true, c10::IValue()};
    Call call;
    call.info = &info;
    call.args = args_.data();
    for (int i = 0; i < 3; ++i) call.tensors.push_back(query_.unsafeGetTensorImpl());
    call.tensors.push_back(nullptr);
    call.writes.assign(4, false);
    call.tensor_counts = {1, 1, 1, 1, -1, -1, -1, -1};
    return call;
  }

  at::Tensor query_ = torch::zeros({1, 2, 4, 8}, at::kMeta);
  std::vector<c10::IValue> args_;
};

TEST_F(IdlePosition, IsAHostNumberBesideResultsOfADevice) {
  const Call call = Attention(0.0);
  EXPECT_TRUE(IsIdlePosition(call, torch::zeros({}, at::kLong)));
  EXPECT_FALSE(IsIdlePosition(call, torch::zeros({}, at::kFloat)));
  EXPECT_FALSE(IsIdlePosition(call, torch::zeros({1}, at::kLong)));
  EXPECT_FALSE(IsIdlePosition(call, torch::zeros({}, torch::dtype(at::kLong).device(at::kMeta))));
  EXPECT_FALSE(IsIdlePosition(call, at::Tensor()));
}

TEST_F(IdlePosition, MattersWhereTheCallDraws) {
  EXPECT_FALSE(IsIdlePosition(Attention(0.1), torch::zeros({}, at::kLong)));
  EXPECT_FALSE(IsIdlePosition(Attention(-0.0), torch::zeros({}, at::kLong)));
}

TEST_F(IdlePosition, IsNoneOnTheHost) {
  query_ = torch::zeros({1, 2, 4, 8});
  EXPECT_FALSE(IsIdlePosition(Attention(0.0), torch::zeros({}, at::kLong)));
}

TEST_F(IdlePosition, IsNoOutputAndMarksTheShapes) {
  const Call call = Attention(0.0);
  const at::Tensor position = torch::zeros({}, at::kLong);
  const std::vector<c10::IValue> results = {torch::zeros({1, 2, 4, 8}), torch::zeros({1, 2, 32}), position, position};
  const std::vector<at::Tensor> operands = {query_, query_, query_, at::Tensor()};
  ShapeClass shapes;
  ASSERT_TRUE(DescribeReturns(call, operands, results, /*meta=*/false, shapes));
  ASSERT_EQ(shapes.returns.size(), 4U);
  EXPECT_EQ(shapes.returns[1].kind, ReturnSpec::Kind::kTensor);
  EXPECT_EQ(shapes.returns[2].kind, ReturnSpec::Kind::kIdlePosition);
  EXPECT_EQ(shapes.returns[3].kind, ReturnSpec::Kind::kIdlePosition);
  EXPECT_TRUE(shapes.returns[2].outputs.empty());
  EXPECT_TRUE(shapes.silent_calls_only);
}

}  // namespace
}  // namespace outrider::seam
