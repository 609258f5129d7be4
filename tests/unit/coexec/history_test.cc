// User code inside the autograd graph of a C++ program: hooks, custom functions, re-entrant passes.

#include <vector>

#include "support/coexec_bench.h"

namespace outrider::test {
namespace {

using History = LaneTest;
OUTRIDER_BOTH_LANES(History);

Step WithHidden(std::function<torch::Tensor(Bench&, int, torch::Tensor hidden)> change) {
  return [change](Bench& bench, int i) {
    bench.optimizer.zero_grad();
    auto loss = bench.LossOf(change(bench, i, bench.Hidden()));
    loss.backward();
    bench.optimizer.step();
    return loss;
  };
}

TEST_P(History, HookOnAnActivation) {
  const auto outcome = ExpectEqual(WithHidden([](Bench& bench, int i, torch::Tensor hidden) {
                                     if (!Odd(i)) return hidden;
                                     hidden.register_hook([&bench](torch::Tensor gradient) {
                                       bench.log.push_back(Bits(gradient.sum()));
                                       return gradient * 0.5;
                                     });
                                     return hidden;
                                   }),
                                   With());
  ExpectCoveredBefore(outcome);
  EXPECT_EQ(outcome.state.count("log.2"), 1U);
}

TEST_P(History, RetainedGradient) {
  const auto outcome = ExpectEqual(
      [](Bench& bench, int i) {
        bench.optimizer.zero_grad();
        auto hidden = bench.Hidden();
        if (Odd(i)) hidden.retain_grad();
        auto loss = bench.LossOf(hidden);
        loss.backward();
        if (Odd(i)) bench.log.push_back(Bits(hidden.grad()));
        bench.optimizer.step();
        return loss;
      },
      With());
  ExpectCoveredBefore(outcome);
  EXPECT_EQ(outcome.state.count("log.2"), 1U);
}

TEST_P(History, HookOnAParameter) {
  ExpectEqual(
      [](Bench& bench, int i) {
        if (!Odd(i)) return bench.Train();
        const auto hook = bench.Weight().register_hook([](torch::Tensor gradient) { return gradient * 0.5; });
        auto loss = bench.Train();
        bench.Weight().remove_hook(hook);
        return loss;
      },
      With());
}

struct CountingHook : torch::autograd::FunctionPostHook {
  explicit CountingHook(Bench& bench) : bench(bench) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list& inputs) override {
    bench.log.push_back("accumulated " + Bits(inputs[0]));
    return outputs;
  }
  Bench& bench;
};

// What data parallel training does: a hook behind the accumulation of one parameter.
TEST_P(History, HookOnTheAccumulator) {
  const auto outcome = ExpectEqual(
      [](Bench& bench, int i) {
        if (!Odd(i)) return bench.Train();
        const auto accumulator = torch::autograd::impl::grad_accumulator(bench.Weight());
        const auto key = accumulator->add_post_hook(std::make_unique<CountingHook>(bench));
        auto loss = bench.Train();
        accumulator->del_post_hook(key);
        return loss;
      },
      With());
  ExpectCoveredBefore(outcome);
  EXPECT_EQ(outcome.state.count("log.2"), 1U);
}

// The nodes of a covered step do not exist; a hook for one of them must not be lost in silence.
TEST(Node, HookInACoveredStepIsRefused) {
  const auto step = WithHidden([](Bench& bench, int i, torch::Tensor hidden) {
    if (i == 12) hidden.grad_fn()->add_post_hook(std::make_unique<CountingHook>(bench));
    return hidden;
  });
  const auto outcome = RunCoexec(step, 13, {{"lane", kOuterLane}});
  EXPECT_NE(outcome.state.at("loss.12").find("stands for all nodes"), std::string::npos) << outcome.state.at("loss.12");
}

// Placeholders are no views; who asks gets the answer of eager.
TEST_P(History, ViewRelationLate) {
  const auto outcome = ExpectEqual(
      [](Bench& bench, int i) {
        auto loss = bench.Train();
        auto row = bench.Weight()[0], flat = bench.Weight().detach().view({-1});
        if (Odd(i)) {
          bench.log.push_back(
              c10::str(row.is_view(), row._base().is_same(bench.Weight()), flat.is_view(), loss.is_view()));
        }
        return loss;
      },
      With());
  ExpectCoveredBefore(outcome);
  EXPECT_EQ(outcome.state.at("log.0"), "1110");
}

struct ScaledTanh : torch::autograd::Function<ScaledTanh> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context, torch::Tensor x, double scale) {
    auto y = torch::tanh(x * scale);
    context->save_for_backward({y});
    context->saved_data["scale"] = scale;
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto y = context->get_saved_variables()[0];
    return {gradients[0] * (1 - y * y) * context->saved_data["scale"].toDouble(), torch::Tensor()};
  }
};

TEST_P(History, CustomFunctionEachStep) {
  const auto outcome =
      ExpectEqual(WithHidden([](Bench&, int, torch::Tensor hidden) { return ScaledTanh::apply(hidden, 1.5); }), With());
  EXPECT_EQ(StepsIn("outer", outcome, 0), 0);
}

// Its node takes an edge of the covered step before anything can be noticed.
TEST_P(History, CustomFunctionLate) {
  const auto outcome =
      ExpectEqual(WithHidden([](Bench&, int i, torch::Tensor hidden) {
                    if (!Odd(i)) return hidden;
                    const auto other = hidden * 2 + hidden.sin();
                    return ScaledTanh::apply(hidden, 1.5) + ScaledTanh::apply(other, 0.5) + hidden + other;
                  }),
                  With());
  ExpectCoveredBefore(outcome);
}

TEST_P(History, GradThroughALateCustomFunction) {
  const auto outcome = ExpectEqual(
      [](Bench& bench, int i) {
        if (!Odd(i)) return bench.Train();
        bench.optimizer.zero_grad();
        auto hidden = bench.Hidden();
        auto loss = bench.LossOf(ScaledTanh::apply(hidden, 1.5));
        const auto gradients = torch::autograd::grad({loss}, {hidden, bench.Weight()}, {}, /*retain_graph=*/true);
        for (const auto& gradient : gradients) bench.log.push_back(Bits(gradient));
        loss.backward();
        bench.optimizer.step();
        return loss;
      },
      With());
  ExpectCoveredBefore(outcome);
}

// Recomputes its forward pass in backward, by a pass of the engine inside the running one.
struct Recomputed : torch::autograd::Function<Recomputed> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context, torch::Tensor x) {
    context->save_for_backward({x});
    return torch::tanh(x) * x;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    auto x = context->get_saved_variables()[0].detach().requires_grad_();
    torch::AutoGradMode with_grad(true);
    torch::autograd::backward({torch::tanh(x) * x}, {gradients[0]});
    return {x.grad()};
  }
};

TEST_P(History, ReentrantEachStep) {
  const auto outcome =
      ExpectEqual(WithHidden([](Bench&, int, torch::Tensor hidden) { return Recomputed::apply(hidden); }), With());
  EXPECT_EQ(StepsIn("outer", outcome, 0), 0);
}

TEST_P(History, ReentrantLate) {
  const auto outcome = ExpectEqual(
      WithHidden([](Bench&, int i, torch::Tensor hidden) { return Odd(i) ? Recomputed::apply(hidden) : hidden; }),
      With());
  ExpectCoveredBefore(outcome);
}

}  // namespace
}  // namespace outrider::test
