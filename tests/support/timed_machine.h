#pragma once
// The engine's core on a machine whose steps take the seconds of a formula, on a clock of its own, behind the admission
// of the engine: what overload does to goals, in no time at all.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/check.h"
#include "serve/admission.h"
#include "serve/core.h"
#include "support/serve_support.h"

namespace outrider::serve::test {

struct StepCost {
  double step_s = 0, text_s = 0, prompt_token_s = 0;
  double noise = 0;          // steps take up to this share more or less
  double hiccup_chance = 0;  // that a step takes ten times as long
  double slower_from_s = 1e9, slower = 1;
  double prompt_pass_s = 0;  // of a step that has tokens of prompts, however many
};

class TimedExecutor : public FakeExecutor {
 public:
  TimedExecutor(const ModelShape& shape, const StepCost& cost, int64_t* now_ns)
      : FakeExecutor(shape), cost_(cost), now_ns_(now_ns) {}

  base::Result<RunCost> Run(std::span<const TokenRun> runs, std::span<float> logits) override {
    auto done = FakeExecutor::Run(runs, logits);
    if (!done) return done;
    double seconds = cost_.step_s;
    int64_t prompts = 0;
    for (const TokenRun& run : runs) {
      const auto prompt = static_cast<double>(run.prompt), all = static_cast<double>(run.ids.size());
      seconds += prompt * cost_.prompt_token_s + (all - prompt) * cost_.text_s;
      prompts += run.prompt;
    }
    const double pass_s = prompts > 0 && cost_.prompt_pass_s > 0
                              ? cost_.prompt_pass_s + static_cast<double>(prompts) * cost_.prompt_token_s
                              : 0;
    if (pass_s > 0) seconds += cost_.prompt_pass_s;
    double factor = 1 + cost_.noise * (2 * Uniform() - 1);
    if (Uniform() < cost_.hiccup_chance) factor *= 10;
    if (static_cast<double>(*now_ns_) * 1e-9 > cost_.slower_from_s) factor *= cost_.slower;
    seconds *= factor;
    done->prompt_seconds = factor * pass_s;
    done->prompt_tokens = pass_s > 0 ? prompts : 0;
    *now_ns_ += static_cast<int64_t>(seconds * 1e9);
    done->seconds = seconds;
    return done;
  }

 private:
  double Uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

  const StepCost cost_;
  int64_t* const now_ns_;
  std::mt19937_64 random_{7};
};

struct Due {
  double at_s = 0;
  int64_t prompt_tokens = 1, written_tokens = 1;
};

// Poisson arrivals with lengths around the means, from one text of one token to four times as long.
inline std::vector<Due> PoissonLoad(double per_s, double seconds, double prompt_mean, double written_mean) {
  std::mt19937_64 random(11);
  const auto exponential = [&random](double mean) {
    return -mean * std::log(1 - static_cast<double>(random() >> 11) * 0x1p-53);
  };
  const auto length = [&exponential](double mean) {
    return std::clamp<int64_t>(std::llround(exponential(mean)), 1, std::llround(4 * mean));
  };
  std::vector<Due> load;
  for (double at_s = exponential(1 / per_s); at_s < seconds; at_s += exponential(1 / per_s))
    load.push_back({at_s, length(prompt_mean), length(written_mean)});
  return load;
}

struct Served {
  double at_s = 0, first_s = -1, last_s = -1;
  int64_t written = 0;
  bool refused = false;
  Finish finish = Finish::kNone;

  double tpot_s() const { return written > 1 ? (last_s - first_s) / static_cast<double>(written - 1) : 0; }
};

class TimedRun {
 public:
  TimedRun(EngineOptions options, const ModelShape& shape, const StepCost& cost)
      : executor_(shape, cost, &now_ns_),
        pregate_(shape),
        options_(CompleteOnClock(std::move(options), shape, &now_ns_)),
        core_(executor_, shape.experts > 0 ? &pregate_ : nullptr, options_, [this](const Event& event) {
          Tell(event);
          return true;
        }) {}

  // In the order of `load`.
  std::vector<Served> Serve(const std::vector<Due>& load) {
    served_.assign(load.size(), {});
    for (size_t next = 0; next < load.size() || !core_.Idle();) {
      if (core_.Idle()) now_ns_ = std::max(now_ns_, static_cast<int64_t>(load[next].at_s * 1e9) + 1);
      const EngineStats stats = core_.Stats();
      Admitted admitted;
      admitted.total = live_;
      for (; next < load.size() && load[next].at_s <= now_s(); ++next) Ask(next, load[next], stats, admitted);
      core_.Step();
      OUTRIDER_CHECK(core_.Stats().first_violation.empty(), core_.Stats().first_violation);
    }
    return served_;
  }

  EngineStats Stats() const { return core_.Stats(); }
  double now_s() const { return static_cast<double>(now_ns_) * 1e-9; }

 private:
  // As Engine::Submit does.
  void Ask(size_t place, const Due& due, const EngineStats& stats, Admitted& admitted) {
    served_[place].at_s = due.at_s;
    Request request;
    for (int64_t i = 0; i < due.prompt_tokens; ++i)
      request.prompt.push_back(static_cast<int32_t>((i * 7 + static_cast<int64_t>(place)) % 40));
    request.max_tokens = due.written_tokens;
    const int64_t text_max = due.prompt_tokens + due.written_tokens;
    if (!CheckCaps(request, text_max, admitted, stats, options_)) {
      served_[place].refused = true;
      return;
    }
    auto state = MakeState(std::move(request), text_max);
    state->id = place + 1;
    SetTimes(*state, options_, now_ns_);
    core_.Add(std::move(state));
    ++live_.requests;
    live_.tokens += text_max;
    sizes_[place] = text_max;
    admitted.total = live_;
    ++admitted.waiting;
    admitted.waiting_prompt_tokens += due.prompt_tokens;
    admitted.waiting_tokens += text_max;
  }

  void Tell(const Event& event) {
    const size_t place = event.stream - 1;
    Served& served = served_[place];
    if (!event.tokens.empty()) {
      served.last_s = now_s();
      if (served.first_s < 0) served.first_s = served.last_s;
      served.written += static_cast<int64_t>(event.tokens.size());
    }
    if (event.finish == Finish::kNone) return;
    served.finish = event.finish;
    --live_.requests;
    live_.tokens -= sizes_[place];
  }

  int64_t now_ns_ = 0;
  TimedExecutor executor_;
  FakePregate pregate_;
  EngineOptions options_;
  sched::Usage live_;
  std::vector<Served> served_;
  std::map<size_t, int64_t> sizes_;
  EngineCore core_;  // behind what it uses
};

}  // namespace outrider::serve::test
