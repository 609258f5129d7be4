// What is read off a schema decides where an operator may run.

#include "seam/op_info.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "seam/signature.h"

namespace outrider::seam {
namespace {

OpInfo& Info(const char* name, const char* overload = "") {
  return InfoOf(c10::Dispatcher::singleton().findSchemaOrThrow(name, overload));
}

TEST(OpInfo, IsReadOncePerOperator) { EXPECT_EQ(&Info("aten::add", "Tensor"), &Info("aten::add", "Tensor")); }

TEST(OpInfo, ArgumentsByWhatTheyDecide) {
  const OpInfo& add = Info("aten::add_", "Tensor");
  EXPECT_EQ(add.args[0].kind, ArgKind::kTensor);
  EXPECT_TRUE(add.args[0].writes);
  EXPECT_FALSE(add.args[1].writes);
  EXPECT_EQ(add.args[2].kind, ArgKind::kLateScalar);
  EXPECT_EQ(add.returned_arg[0], 0);
  EXPECT_EQ(Info("aten::view").args[1].kind, ArgKind::kSizeList);
  EXPECT_EQ(Info("aten::cat").args[0].kind, ArgKind::kTensorList);
  EXPECT_EQ(Info("aten::index", "Tensor").args[1].kind, ArgKind::kOptionalTensorList);
  EXPECT_EQ(Info("aten::sum", "dim_IntList").args[2].kind, ArgKind::kStructural);
}

TEST(OpInfo, WhatMustRunOnRealValues) {
  EXPECT_TRUE(Info("aten::_local_scalar_dense").MustRunInline());
  EXPECT_TRUE(Info("aten::nonzero").MustRunInline());
  EXPECT_TRUE(Info("aten::set_", "source_Storage").MustRunInline());
  EXPECT_FALSE(Info("aten::mm").MustRunInline());
  EXPECT_FALSE(Info("aten::native_batch_norm").MustRunInline());
}

TEST(OpInfo, RandomOperatorsMayHaveASwitch) {
  const OpInfo& dropout = Info("aten::native_dropout");
  EXPECT_TRUE(dropout.random);
  const std::vector<c10::IValue> training = {torch::ones({2}), 0.5, true}, evaluation = {torch::ones({2}), 0.5, false};
  EXPECT_TRUE(dropout.Draws(training.data()));
  EXPECT_FALSE(dropout.Draws(evaluation.data()));
  EXPECT_FALSE(Info("aten::mul", "Tensor").random);
}

TEST(OpInfo, ViewsAlias) {
  EXPECT_TRUE(Info("aten::view").view);
  EXPECT_TRUE(Info("aten::reshape").may_alias);
  EXPECT_FALSE(Info("aten::add", "Tensor").may_alias);
}

TEST(StructuralEquality, IsBitwiseAndTyped) {
  EXPECT_TRUE(StructurallyEqual(1.5, 1.5));
  EXPECT_FALSE(StructurallyEqual(0.0, -0.0));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(StructurallyEqual(nan, nan));
  EXPECT_FALSE(StructurallyEqual(1, 1.0));
  EXPECT_FALSE(StructurallyEqual(1, true));
  EXPECT_FALSE(StructurallyEqual(c10::IValue(), 0));
  EXPECT_TRUE(StructurallyEqual(std::vector<int64_t>{1, 2}, std::vector<int64_t>{1, 2}));
  EXPECT_FALSE(StructurallyEqual(std::vector<int64_t>{1, 2}, std::vector<int64_t>{1}));
  EXPECT_FALSE(StructurallyEqual(torch::ones({1}), torch::ones({1}))) << "tensors are no structure";
}

}  // namespace
}  // namespace outrider::seam
