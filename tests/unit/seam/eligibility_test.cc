// Which autograd graphs may be one event.

#include "seam/eligibility.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

namespace outrider::seam {
namespace {

struct Doubling : torch::autograd::Function<Doubling> {
  static torch::Tensor forward(torch::autograd::AutogradContext*, const torch::Tensor& x) { return x * 2; }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*, torch::autograd::tensor_list gradients) {
    return {gradients[0] * 2};
  }
};

TEST(Eligibility, OrdinaryGraphsAreAllowed) {
  const auto weight = torch::ones({3, 3}, torch::requires_grad()), bias = torch::ones({3}, torch::requires_grad());
  const auto loss = torch::relu(torch::addmm(bias, torch::ones({2, 3}), weight)).sum();
  const GraphFacts facts = InspectGraph(GradientEdges({loss}));
  EXPECT_EQ(facts.refusal, "");
  EXPECT_EQ(facts.leaves.size(), 2u);
  EXPECT_GE(facts.nodes.size(), 3u);
}

TEST(Eligibility, CustomFunctionsAreRefused) {
  const auto x = torch::ones({2}, torch::requires_grad());
  EXPECT_NE(InspectGraph(GradientEdges({Doubling::apply(x).sum()})).refusal, "");
}

TEST(Eligibility, HooksAreRefused) {
  const auto x = torch::ones({2}, torch::requires_grad());
  const auto y = x * 2;
  y.register_hook([](const torch::Tensor& gradient) { return gradient; });
  EXPECT_NE(InspectGraph(GradientEdges({y.sum()})).refusal, "");
}

TEST(Eligibility, LeavesWithHooksAreObstacles) {
  const auto x = torch::ones({2}, torch::requires_grad());
  EXPECT_EQ(LeafObstacle(x), "");
  x.register_hook([](const torch::Tensor& gradient) { return gradient * 2; });
  EXPECT_NE(LeafObstacle(x), "");
}

}  // namespace
}  // namespace outrider::seam
