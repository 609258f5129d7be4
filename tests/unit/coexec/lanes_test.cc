// C++ programs in both lanes: covered, equal to eager, and equal again after a divergence anywhere.

#include <torch/csrc/autograd/engine.h>

#include <memory>
#include <vector>

#include "support/coexec_bench.h"

namespace outrider::test {
namespace {

using InLane = LaneTest;
OUTRIDER_BOTH_LANES(InLane);

torch::Tensor Train(Bench& bench, int) { return bench.Train(); }

TEST(Watch, CppProcessIsWatched) {
  ASSERT_TRUE(coexec::Session::Get().EnsureLoaded());
  EXPECT_NE(&torch::autograd::Engine::get_default_engine(), &torch::autograd::Engine::get_base_engine());
}

TEST_P(InLane, TrainingIsCovered) {
  const Outcome outcome = ExpectEqual(Train, With(), 40);
  EXPECT_EQ(StepsIn(Name(), outcome, 20), 20) << Why(outcome);
  int64_t device_ops = 0, covered_ops = 0, events = 0;
  for (size_t i = 20; i < outcome.rows.size(); ++i) {
    device_ops += outcome.rows[i].device_ops;
    covered_ops += outcome.rows[i].covered_ops;
    events += outcome.rows[i].events;
  }
  EXPECT_GT(device_ops, 20 * 60);
  EXPECT_GE(static_cast<double>(covered_ops), 0.95 * static_cast<double>(device_ops)) << Why(outcome);
  EXPECT_EQ(events > 0, Outer());
}

TEST_P(InLane, GradientsThatStayAreAddedTo) {
  const auto outcome = ExpectEqual(
      [](Bench& bench, int) {
        bench.optimizer.zero_grad(/*set_to_none=*/false);
        for (int k = 0; k < 2; ++k) bench.Loss().backward();
        auto loss = bench.Loss();
        loss.backward();
        bench.optimizer.step();
        return loss;
      },
      With(), 20);
  EXPECT_EQ(StepsIn(Name(), outcome, 10), 10) << Why(outcome);
}

// The C++ front end divides a number by a tensor with empty_like, fill_ and div_.
TEST_P(InLane, NumbersMadeByEvents) {
  const auto outcome = ExpectEqual(
      [](Bench& bench, int) {
        bench.optimizer.zero_grad();
        auto loss = bench.Loss();
        loss = loss * (3.0 / loss.detach()) + torch::zeros_like(loss).add_(0.5);
        loss.backward();
        bench.optimizer.step();
        return loss;
      },
      With(), 20);
  EXPECT_EQ(StepsIn(Name(), outcome, 10), 10) << Why(outcome);
}

TEST_P(InLane, ValuesReadInMidStep) {
  const auto outcome = ExpectEqual(
      [](Bench& bench, int) {
        bench.optimizer.zero_grad();
        auto loss = bench.Loss();
        if (loss.item<double>() > 1.0) loss = loss * 1.5;
        loss.backward();
        bench.log.push_back(std::to_string(bench.Weight().grad().norm().item<double>()));
        bench.optimizer.step();
        return loss;
      },
      With(), 30);
  EXPECT_GE(StepsIn(Name(), outcome, 10), 10) << Why(outcome);
}

// Forces a divergence at each event of one covered step in turn; each run must end in eager's state.
void ForceEverywhere(const Step& step, const Options& options, int64_t least_events) {
  constexpr int kSteps = 14, kForcedStep = 10;
  const Outcome eager = RunEager(step, kSteps);
  for (int64_t event = 0; event < 2000; ++event) {
    Options forced = options;
    forced.insert({{"force_step", kForcedStep}, {"force_event", event}});
    const Outcome other = RunCoexec(step, kSteps, forced);
    EXPECT_EQ(Differences(eager, other), std::vector<std::string>{}) << "event " << event << "\n" << Why(other);
    const Row& row = other.rows.at(kForcedStep);
    if (!DivergedWith("DIV_FORCED", row)) {
      EXPECT_GE(event, least_events) << Why(other);
      return;
    }
    EXPECT_EQ(row.divergences.front().event, event);
  }
  ADD_FAILURE() << "the step does not end";
}

TEST_P(InLane, DivergenceAtEveryEvent) { ForceEverywhere(Train, With(), 50); }

// A value is read before backward, gradients are kept, and two passes accumulate.
TEST_P(InLane, DivergenceAtEveryEventOfAReadingStep) {
  ForceEverywhere(
      [](Bench& bench, int) {
        bench.optimizer.zero_grad(/*set_to_none=*/false);
        bench.Loss().backward();
        auto loss = bench.Loss() + (bench.Weight().t() * 0.01).sum();
        bench.log.push_back(std::to_string(loss.item<double>()));
        loss.backward();
        bench.optimizer.step();
        return loss;
      },
      With(), 70);
}

TEST_P(InLane, CoveredAgainAfterADivergence) {
  const Outcome other = ExpectEqual(Train, With({{"force_step", 10}, {"force_event", 7}}), 24);
  EXPECT_TRUE(DivergedWith("DIV_FORCED", other.rows.at(10)));
  EXPECT_EQ(StepsIn(Name(), other, 16), 8) << Why(other);
}

TEST_P(InLane, DebuggingFlushes) {
  for (int64_t flush : {1, 2}) {
    const Outcome other = ExpectEqual(Train, With({{"flush", flush}}), 20);
    int64_t flushes = 0;
    for (const Row& row : other.rows) {
      for (const auto& [code, count] : row.flushes) flushes += count;
    }
    EXPECT_GT(flushes, 0);
  }
}

TEST(Options, UnknownNameIsRefused) { EXPECT_THROW(SetOption("no such option", 1), std::exception); }

}  // namespace
}  // namespace outrider::test
