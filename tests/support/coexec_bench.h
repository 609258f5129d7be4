#pragma once
// A little C++ training program, run eagerly and co-executed, and every bit of what it leaves behind.

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cctype>
#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "coexec/session.h"
#include "outrider/coexec.h"

namespace outrider::test {

using Options = std::map<std::string, int64_t>;
using State = std::map<std::string, std::string>;  // name -> every bit, as text

constexpr int64_t kInnerLane = 1, kOuterLane = 2;

inline std::string Bits(const torch::Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  const auto plain = tensor.detach().contiguous();
  std::ostringstream text;
  text << tensor.scalar_type() << tensor.sizes() << " version " << tensor._version() << ' ';
  text.write(static_cast<const char*>(plain.const_data_ptr()), static_cast<std::streamsize>(plain.nbytes()));
  return text.str();
}

struct SmallNetImpl : torch::nn::Module {
  SmallNetImpl()
      : first(register_module("first", torch::nn::Linear(6, 8))),
        norm(register_module("norm", torch::nn::BatchNorm1d(8))),
        dropout(register_module("dropout", torch::nn::Dropout(0.1))),
        last(register_module("last", torch::nn::Linear(8, 3))) {}

  torch::Tensor Hidden(const torch::Tensor& features) { return torch::tanh(norm(first(features))); }
  torch::Tensor Logits(const torch::Tensor& hidden) { return last(dropout(hidden)); }

  torch::nn::Linear first;
  torch::nn::BatchNorm1d norm;
  torch::nn::Dropout dropout;
  torch::nn::Linear last;
};
TORCH_MODULE(SmallNet);

// Trains a small net with Adam on batches that lie in the program's own memory.
class Bench {
 public:
  Bench() : optimizer(net->parameters(), 1e-2) {}

  torch::Tensor Features() {
    std::normal_distribution<float> normal;
    for (float& feature : features_) feature = normal(random_);
    return torch::from_blob(features_.data(), {kBatch, kFeatures});
  }
  torch::Tensor Labels() {
    for (int64_t& label : labels_) label = static_cast<int64_t>(random_() % 3);
    return torch::from_blob(labels_.data(), {kBatch}, torch::kLong);
  }
  torch::Tensor Hidden() { return net->Hidden(Features()); }
  torch::Tensor LossOf(const torch::Tensor& hidden) { return torch::cross_entropy_loss(net->Logits(hidden), Labels()); }
  torch::Tensor Loss() { return LossOf(Hidden()); }
  torch::Tensor Weight() { return net->first->weight; }

  // One ordinary training step; returns the loss.
  torch::Tensor Train() {
    optimizer.zero_grad();
    auto loss = Loss();
    loss.backward();
    optimizer.step();
    return loss;
  }

  State Values() const {
    State state;
    state["random"] = Bits(at::detail::getDefaultCPUGenerator().get_state());
    for (size_t i = 0; i < losses.size(); ++i) state["loss." + std::to_string(i)] = losses[i];
    for (size_t i = 0; i < log.size(); ++i) state["log." + std::to_string(i)] = log[i];
    for (const auto& item : net->named_buffers()) state["buffer." + item.key()] = Bits(item.value());
    for (const auto& item : net->named_parameters()) {
      state["param." + item.key()] = Bits(item.value());
      state["grad." + item.key()] = Bits(item.value().grad());
      const auto found = optimizer.state().find(item.value().unsafeGetTensorImpl());
      if (found == optimizer.state().end()) continue;
      const auto& adam = static_cast<const torch::optim::AdamParamState&>(*found->second);
      state["exp_avg." + item.key()] = Bits(adam.exp_avg());
      state["exp_avg_sq." + item.key()] = Bits(adam.exp_avg_sq());
      state["adam_step." + item.key()] = std::to_string(adam.step());
    }
    return state;
  }

  static constexpr int64_t kBatch = 5, kFeatures = 6;
  SmallNet net;
  torch::optim::Adam optimizer;
  std::vector<std::string> log;      // whatever a scenario wants compared
  std::function<void()> after_step;  // once, when the step is over
  std::vector<std::string> losses;   // per step: the bits of what it returned, or the message of what it threw

 private:
  std::vector<float> features_ = std::vector<float>(kBatch * kFeatures);
  std::vector<int64_t> labels_ = std::vector<int64_t>(kBatch);
  std::mt19937 random_{3};
};

using Step = std::function<torch::Tensor(Bench& bench, int step)>;

struct Outcome {
  State state;
  std::vector<Row> rows;  // of a co-executed run, one a step
};

// An exception ends its step, not the run.
inline std::string MessageOf(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));  // torch appends a backtrace
}

inline void RunSteps(Bench& bench, const Step& step, int steps, bool coexec) {
  for (int i = 0; i < steps; ++i) {
    try {
      std::optional<StepScope> scope;
      if (coexec) scope.emplace("bench");
      const auto loss = step(bench, i);
      scope.reset();
      if (const auto work = std::exchange(bench.after_step, nullptr)) work();
      bench.losses.push_back(i % 3 == 0 ? Bits(loss) : "not read");
    } catch (const std::exception& error) {
      bench.losses.push_back(MessageOf(error));
    }
  }
}

inline Outcome RunEager(const Step& step, int steps) {
  torch::manual_seed(11);
  Bench bench;
  RunSteps(bench, step, steps, false);
  return {bench.Values(), {}};
}

inline Outcome RunCoexec(const Step& step, int steps, const Options& options) {
  auto& session = coexec::Session::Get();
  Options before;
  for (const auto& [name, value] : options) {
    before[name] = session.GetOption(name);
    SetOption(name, value);
  }
  session.Reset();
  torch::manual_seed(11);
  Outcome outcome;
  {
    Bench bench;
    RunSteps(bench, step, steps, true);
    Flush();
    outcome.rows = Rows();
    outcome.state = bench.Values();
    Leave();
  }
  session.Reset();
  for (const auto& [name, value] : before) SetOption(name, value);
  return outcome;
}

inline std::string Readable(const std::string& bits) {
  std::string text = bits.substr(0, 120);
  std::erase_if(text, [](unsigned char c) { return std::isprint(c) == 0; });
  return text;
}

// Names of what differs; empty means bit for bit equal.
inline std::vector<std::string> Differences(const Outcome& eager, const Outcome& other) {
  std::vector<std::string> names;
  for (const auto& [name, bits] : eager.state) {
    const auto found = other.state.find(name);
    if (found == other.state.end()) {
      names.push_back(name + " is missing");
    } else if (found->second != bits) {
      names.push_back(name + ": " + Readable(bits) + " against " + Readable(found->second));
    }
  }
  for (const auto& [name, bits] : other.state) {
    if (eager.state.count(name) == 0) names.push_back(name);
  }
  return names;
}

inline int64_t StepsIn(const std::string& lane, const Outcome& outcome, size_t first_step) {
  int64_t count = 0;
  for (size_t i = first_step; i < outcome.rows.size(); ++i) count += outcome.rows[i].lane == lane ? 1 : 0;
  return count;
}

inline bool DivergedWith(const std::string& code, const Row& row) {
  return std::any_of(row.divergences.begin(), row.divergences.end(), [&](const auto& d) { return d.code == code; });
}

// What the rows say about why a step was not covered, for a failed assertion.
inline std::string Why(const Outcome& outcome) {
  std::ostringstream text;
  for (const Row& row : outcome.rows) {
    text << row.step << ' ' << row.lane << ' ' << row.covered_ops << '/' << row.device_ops << ' ' << row.note;
    for (const auto& d : row.divergences)
      text << " | " << d.code << ' ' << d.event << ' ' << d.expected << "->" << d.got;
    text << '\n';
  }
  return text.str();
}

// Runs a scenario in both ways and expects equality; returns the co-executed outcome for further expectations.
inline Outcome ExpectEqual(const Step& step, const Options& options, int steps = 14) {
  const Outcome eager = RunEager(step, steps);
  Outcome other = RunCoexec(step, steps, options);
  EXPECT_EQ(Differences(eager, other), std::vector<std::string>{}) << Why(other);
  return other;
}

// Steps in which a difficulty is there: it comes late, to a program that is covered by then, and goes away again.
constexpr int kOddStep = 8;
inline bool Odd(int step) { return step >= kOddStep && step < kOddStep + 3; }

// A test of both lanes. OUTRIDER_BOTH_LANES(Suite) instantiates it.
class LaneTest : public testing::TestWithParam<int64_t> {
 protected:
  bool Outer() const { return GetParam() == kOuterLane; }
  std::string Name() const { return Outer() ? "outer" : "inner"; }
  Options With(Options options = {}) const {
    options["lane"] = GetParam();
    return options;
  }
  // Where the outer lane is asked for, it covered the step before the difficulty, or the last step.
  void ExpectCoveredBefore(const Outcome& outcome) const { ExpectCovered(outcome, kOddStep - 1); }
  void ExpectCoveredAtLast(const Outcome& outcome) const { ExpectCovered(outcome, outcome.rows.size() - 1); }
  // Where the outer lane is asked for, it said why it does not serve.
  void ExpectNote(const Outcome& outcome, const std::string& code) const {
    EXPECT_TRUE(!Outer() || outcome.rows.back().note.find(code) != std::string::npos) << Why(outcome);
  }

 private:
  void ExpectCovered(const Outcome& outcome, size_t step) const {
    EXPECT_TRUE(!Outer() || outcome.rows.at(step).lane == "outer") << Why(outcome);
  }
};
#define OUTRIDER_BOTH_LANES(Suite)                                               \
  INSTANTIATE_TEST_SUITE_P(Both, Suite, testing::Values(kInnerLane, kOuterLane), \
                           [](const auto& lane) { return lane.param == kOuterLane ? "Outer" : "Inner"; })

}  // namespace outrider::test
