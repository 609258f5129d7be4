// What C++ programs do with backward passes beyond the ordinary, early or in a step that is covered by then.

#include <thread>
#include <vector>

#include "support/coexec_bench.h"

namespace outrider::test {
namespace {

using Backward = LaneTest;
OUTRIDER_BOTH_LANES(Backward);

// Steps whose way from the loss to the gradients is `differentiate`.
Step TrainBy(std::function<void(Bench&, int, torch::Tensor hidden, torch::Tensor loss)> differentiate) {
  return [differentiate](Bench& bench, int i) {
    bench.optimizer.zero_grad();
    auto hidden = bench.Hidden();
    auto loss = bench.LossOf(hidden);
    differentiate(bench, i, hidden, loss);
    bench.optimizer.step();
    return loss;
  };
}

TEST_P(Backward, RetainGraphEachStep) {
  const auto outcome = ExpectEqual(TrainBy([](Bench&, int, torch::Tensor, torch::Tensor loss) {
                                     loss.backward({}, /*retain_graph=*/true);
                                     loss.backward();
                                   }),
                                   With());
  EXPECT_EQ(StepsIn("outer", outcome, 0), 0);
  ExpectNote(outcome, "INNER_GRAPH_API");
}

TEST_P(Backward, RetainGraphLate) {
  const auto outcome = ExpectEqual(TrainBy([](Bench&, int i, torch::Tensor, torch::Tensor loss) {
                                     if (Odd(i)) loss.backward({}, /*retain_graph=*/true);
                                     loss.backward();
                                   }),
                                   With());
  ExpectCoveredBefore(outcome);
}

TEST_P(Backward, ThrowsInACoveredStep) {
  const auto outcome = ExpectEqual(TrainBy([](Bench&, int i, torch::Tensor hidden, torch::Tensor loss) {
                                     if (Odd(i)) hidden.detach().mul_(2.0);
                                     loss.backward();
                                   }),
                                   With(), 20);
  ExpectCoveredBefore(outcome);
  EXPECT_NE(outcome.state.at("loss.8").find("modified by an inplace operation"), std::string::npos);
  ExpectCoveredAtLast(outcome);
}

TEST_P(Backward, ThrowsFromAHook) {
  const auto outcome = ExpectEqual(
      TrainBy([](Bench& bench, int i, torch::Tensor, torch::Tensor loss) {
        unsigned hook = 0;
        if (Odd(i)) {
          hook = bench.Weight().register_hook([](torch::Tensor) { throw std::runtime_error("hook says no"); });
        }
        try {
          loss.backward();
        } catch (const std::exception& error) {
          bench.log.push_back(MessageOf(error));
        }
        if (Odd(i)) bench.Weight().remove_hook(hook);
      }),
      With());
  ExpectCoveredBefore(outcome);
  EXPECT_EQ(outcome.state.count("log.2"), 1U);
}

// A second pass that throws each step must not become an event that is answered without throwing.
TEST_P(Backward, SecondPassThrowsEachStep) {
  const auto outcome = ExpectEqual(TrainBy([](Bench& bench, int, torch::Tensor, torch::Tensor loss) {
                                     loss.backward();
                                     EXPECT_THROW(loss.backward(), std::exception);
                                     bench.log.push_back("caught");
                                   }),
                                   With());
  ExpectNote(outcome, "INNER_UNSTABLE");
}

TEST_P(Backward, SecondPassThrowsLate) {
  std::vector<torch::Tensor> kept;
  const auto step = [&kept](Bench& bench, int i) {
    if (i == 0) kept.clear();
    if (i == kOddStep) {
      EXPECT_THROW(kept.back().backward(), std::exception);
    }
    auto loss = bench.Train();
    kept.push_back(loss);
    if (i == kOddStep + 2) loss.backward();
    return loss;
  };
  const auto outcome = ExpectEqual(step, With());
  EXPECT_NE(outcome.state.at("loss.10").find("a second time"), std::string::npos);
  kept.clear();
}

TEST_P(Backward, GradOfAnActivation) {
  const auto outcome = ExpectEqual(TrainBy([](Bench& bench, int i, torch::Tensor hidden, torch::Tensor loss) {
                                     if (Odd(i)) {
                                       const auto gradient = torch::autograd::grad({loss}, {hidden}, {}, true);
                                       bench.log.push_back(Bits(gradient[0]));
                                     }
                                     loss.backward();
                                   }),
                                   With());
  ExpectCoveredBefore(outcome);
  EXPECT_EQ(outcome.state.count("log.2"), 1U);
}

TEST_P(Backward, GradientPenalty) {
  ExpectEqual(TrainBy([](Bench& bench, int i, torch::Tensor, torch::Tensor loss) {
                if (Odd(i)) {
                  const auto gradients =
                      torch::autograd::grad({loss}, {bench.Weight()}, {}, true, /*create_graph=*/true);
                  loss = loss + gradients[0].square().sum();
                }
                loss.backward();
              }),
              With());
}

TEST_P(Backward, SomeInputsOnly) {
  ExpectEqual(TrainBy([](Bench& bench, int i, torch::Tensor hidden, torch::Tensor loss) {
                if (!Odd(i)) return loss.backward();
                std::vector<torch::Tensor> inputs{bench.Weight()};
                loss.backward({}, std::nullopt, false, inputs);
                bench.log.push_back(Bits(hidden.detach()));
              }),
              With());
}

// A root that no recording knows, with a gradient that the engine casts.
TEST_P(Backward, AnotherRootLate) {
  const auto outcome = ExpectEqual(
      TrainBy([](Bench&, int i, torch::Tensor hidden, torch::Tensor loss) {
        if (!Odd(i)) return loss.backward();
        torch::autograd::backward({hidden, loss}, {torch::full({5, 8}, 0.25, torch::kDouble), torch::tensor(0.5)});
      }),
      With());
  ExpectCoveredBefore(outcome);
}

TEST_P(Backward, RootGradientsAreCastEachStep) {
  const auto outcome = ExpectEqual(TrainBy([](Bench&, int, torch::Tensor hidden, torch::Tensor loss) {
                                     const auto gradient = torch::full({5, 8}, 0.25, torch::kDouble);
                                     torch::autograd::backward({hidden, loss}, {gradient, torch::ones({1})});
                                   }),
                                   With());
  ExpectCoveredAtLast(outcome);
}

TEST_P(Backward, InAnotherThread) {
  const auto outcome = ExpectEqual(TrainBy([](Bench& bench, int i, torch::Tensor, torch::Tensor loss) {
                                     std::thread([&] {
                                       auto other =
                                           torch::full({3}, i, torch::dtype(torch::kFloat).requires_grad(true));
                                       (other * other).sum().backward();
                                       bench.log.push_back(Bits(other.grad()));
                                     }).join();
                                     if (!Odd(i)) return loss.backward();
                                     std::thread([&] { loss.backward(); }).join();
                                   }),
                                   With());
  ExpectCoveredBefore(outcome);
}

TEST_P(Backward, InTheNextStep) {
  torch::Tensor kept;
  const auto step = [&kept](Bench& bench, int i) {
    if (i == 0) kept = torch::Tensor();
    if (kept.defined()) {
      kept.backward();
      bench.optimizer.step();
      kept = torch::Tensor();
    }
    if (!Odd(i)) return bench.Train();
    bench.optimizer.zero_grad();
    return kept = bench.Loss();
  };
  ExpectCoveredBefore(ExpectEqual(step, With()));
  kept = torch::Tensor();
}

TEST_P(Backward, AfterTheStep) {
  const auto step = [](Bench& bench, int i) {
    if (!Odd(i)) return bench.Train();
    bench.optimizer.zero_grad();
    auto loss = bench.Loss();
    bench.after_step = [&bench, loss] {
      loss.backward();
      bench.optimizer.step();
    };
    return loss;
  };
  ExpectCoveredBefore(ExpectEqual(step, With()));
}

TEST_P(Backward, OutsideAnyStep) {
  Flush();
  auto x = torch::ones({3}, torch::requires_grad());
  (x * x).sum().backward();
  EXPECT_TRUE(torch::equal(x.grad(), torch::full({3}, 2.0)));
  EXPECT_THROW(torch::ones({3}).sum().backward(), std::exception);
}

}  // namespace
}  // namespace outrider::test
