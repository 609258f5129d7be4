#include "sched/simulate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "sched/rate_ewma.h"
#include "sched/step_cost.h"
#include "sched/violations.h"

namespace outrider::sched {
namespace {

struct Running {
  size_t arrival = 0;
  int64_t done = 0;  // tokens run, of prompt and output
  int64_t ready_since = 0;
  int64_t passed_over = 0;
};

class Replay {
 public:
  Replay(std::span<const Arrival> arrivals, const Machine& machine, const StepLimits& limits, Policy policy)
      : arrivals_(arrivals), machine_(machine), policy_(policy) {
    OUTRIDER_CHECK(machine.bytes_per_s > 0 && machine.requests_max > 0, "a machine that does nothing");
    snapshot_.limits = limits;
    snapshot_.experts = machine.experts;
    snapshot_.ffn_bytes = machine.ffn_bytes;
    snapshot_.fixed_bytes = machine.fixed_bytes;
    snapshot_.bytes_per_s = machine.bytes_per_s;
    snapshot_.token_s = machine.token_s;
    snapshot_.prompt_pass.setup_s = machine.prompt_pass_s;
    result_.requests.resize(arrivals.size());
  }

  Simulation Run() && {
    while (true) {
      Admit();
      if (running_.empty()) break;
      Step();
    }
    result_.seconds = now_s_;
    return std::move(result_);
  }

 private:
  const Arrival& ArrivalOf(const Running& running) const { return arrivals_[running.arrival]; }

  void Admit() {
    if (running_.empty() && next_ < arrivals_.size()) now_s_ = std::max(now_s_, arrivals_[next_].time_s);
    const auto full = [&] { return static_cast<int64_t>(running_.size()) >= machine_.requests_max; };
    const size_t before = next_;
    for (; next_ < arrivals_.size() && arrivals_[next_].time_s <= now_s_ && !full(); ++next_) {
      const Arrival& arrival = arrivals_[next_];
      OUTRIDER_CHECK(arrival.prompt_tokens > 0 && arrival.output_tokens > 0, "arrival ", next_, " has no tokens");
      running_.push_back({next_, 0, snapshot_.step, 0});
    }
    rate_.Observe(static_cast<double>(next_ - before), now_s_ - admitted_s_);
    admitted_s_ = now_s_;
    snapshot_.prompt_pass.prompts_per_s = rate_.PerSecond();
  }

  ReadyItem ItemOf(const Running& running) const {
    const Arrival& arrival = ArrivalOf(running);
    ReadyItem item;
    item.request = RequestId{running.arrival};
    item.lane = running.done < arrival.prompt_tokens ? Lane::kPrefill : Lane::kDecode;
    item.tokens = item.lane == Lane::kPrefill ? arrival.prompt_tokens - running.done : 1;
    if (machine_.experts > 0) {
      item.experts = arrival.experts.subspan(static_cast<size_t>(running.done), static_cast<size_t>(item.tokens));
    }
    item.ready_since = running.ready_since;
    item.priority = arrival.priority;
    return item;
  }

  void Step() {
    std::vector<ReadyItem> items;
    for (const Running& running : running_) items.push_back(ItemOf(running));
    snapshot_.items = items;
    SimulatedStep step{now_s_, 0, policy_(snapshot_)};
    const std::vector<std::string> broken = Violations(snapshot_, step.plan);
    OUTRIDER_CHECK(broken.empty() && !step.plan.slices.empty(), "step ", snapshot_.step, ": ",
                   broken.empty() ? "nothing runs" : broken.front());
    int64_t tokens = 0;
    for (const Slice& slice : step.plan.slices) tokens += slice.tokens;
    const bool prompts = std::ranges::count(step.plan.slices, Lane::kPrefill, &Slice::lane) > 0;
    step.seconds = machine_.step_s + StepSeconds(snapshot_, step.plan.experts, tokens) + TextSeconds(step.plan);
    snapshot_.prompt_pass.step_s = step.seconds;
    if (prompts) step.seconds += machine_.prompt_pass_s;
    now_s_ += step.seconds;
    ++snapshot_.step;
    result_.tokens += tokens;
    result_.ffn_bytes += FfnBytes(snapshot_, step.plan.experts);
    result_.weight_bytes += machine_.fixed_bytes + FfnBytes(snapshot_, step.plan.experts);
    Advance(step.plan);
    result_.steps.push_back(std::move(step));
  }

  size_t PlaceOf(const Slice& slice) const {
    const auto found = std::find_if(running_.begin(), running_.end(),
                                    [&](const Running& r) { return r.arrival == slice.request.value; });
    return static_cast<size_t>(found - running_.begin());
  }

  double TextSeconds(const StepPlan& plan) const {
    if (machine_.text_s == 0 && machine_.context_token_s == 0) return 0;
    double seconds = 0;
    for (const Slice& slice : plan.slices) {
      if (slice.lane == Lane::kPrefill) continue;
      seconds += machine_.text_s + machine_.context_token_s * static_cast<double>(running_[PlaceOf(slice)].done);
    }
    return seconds;
  }

  void Advance(const StepPlan& plan) {
    std::vector<int64_t> ran(running_.size(), 0);
    for (const Slice& slice : plan.slices) ran[PlaceOf(slice)] = slice.tokens;
    for (size_t i = 0; i < running_.size(); ++i) AdvanceOne(running_[i], ran[i]);
    std::erase_if(running_, [&](const Running& running) {
      // The last output token is written, not run.
      return running.done == ArrivalOf(running).prompt_tokens + ArrivalOf(running).output_tokens - 1;
    });
  }

  void AdvanceOne(Running& running, int64_t tokens) {
    const Arrival& arrival = ArrivalOf(running);
    RequestTimes& times = result_.requests[running.arrival];
    const bool decodes = running.done >= arrival.prompt_tokens;
    if (tokens == 0) {
      if (decodes) times.passed_over_max = std::max(times.passed_over_max, ++running.passed_over);
      return;
    }
    running.done += tokens;
    running.ready_since = snapshot_.step;
    running.passed_over = 0;
    times.latency_s = now_s_ - arrival.time_s;
    if (!decodes && running.done == arrival.prompt_tokens) times.ttft_s = times.latency_s;
  }

  std::span<const Arrival> arrivals_;
  const Machine& machine_;
  Policy policy_;
  Snapshot snapshot_;
  std::vector<Running> running_;  // by arrival
  size_t next_ = 0;               // arrival that was not admitted yet
  double now_s_ = 0, admitted_s_ = 0;
  RateEwma rate_{kArrivalHalfLifeS};
  Simulation result_;
};

}  // namespace

double Simulation::DistinctExperts() const {
  double sum = 0;
  for (const SimulatedStep& step : steps) sum += std::popcount(step.plan.experts);
  return steps.empty() ? 0 : sum / static_cast<double>(steps.size());
}

double Simulation::MeanTtft() const {
  double sum = 0;
  for (const RequestTimes& times : requests) sum += times.ttft_s;
  return requests.empty() ? 0 : sum / static_cast<double>(requests.size());
}

double Simulation::MeanLatency() const {
  double sum = 0;
  for (const RequestTimes& times : requests) sum += times.latency_s;
  return requests.empty() ? 0 : sum / static_cast<double>(requests.size());
}

double Simulation::LatencyQuantile(double q) const {
  if (requests.empty()) return 0;
  std::vector<double> sorted;
  for (const RequestTimes& times : requests) sorted.push_back(times.latency_s);
  std::sort(sorted.begin(), sorted.end());
  const double rank = std::ceil(q * static_cast<double>(sorted.size()));
  return sorted[static_cast<size_t>(std::clamp(rank, 1.0, static_cast<double>(sorted.size()))) - 1];
}

Simulation Simulate(std::span<const Arrival> arrivals, const Machine& machine, const StepLimits& limits,
                    Policy policy) {
  return Replay(arrivals, machine, limits, policy).Run();
}

}  // namespace outrider::sched
