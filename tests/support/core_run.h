#pragma once
// The engine without its thread, on the fake machine, with a clock that stands unless a test moves it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "serve/admission.h"
#include "serve/core.h"
#include "support/serve_support.h"

namespace outrider::serve::test {

class CoreRun {
 public:
  explicit CoreRun(EngineOptions options = TestOptions(), const ModelShape& shape = FakeShape())
      : executor(shape),
        pregate(shape),
        options_(CompleteOnClock(std::move(options), shape, &now_ns)),
        core(executor, shape.experts > 0 ? &pregate : nullptr, options_, [this](Event event) {
          if (event.finish == Finish::kNone && refuse_events) return false;
          Collect(told, {std::move(event)});
          return true;
        }) {}

  StreamId Submit(Request request) {
    const auto text_max = TextMax(request, executor.shape(), options_);
    OUTRIDER_CHECK(text_max.has_value(), text_max.error().message);
    auto state = MakeState(std::move(request), *text_max);
    state->id = ++last_id_;
    if (state->request.deadline_ms > 0) state->deadline_ns = now_ns + state->request.deadline_ms * 1'000'000;
    core.Add(std::move(state));
    return last_id_;
  }

  void Steps(int count) {
    for (int i = 0; i < count; ++i) core.Step();
  }
  // False: requests are left after `most` steps.
  bool ToTheEnd(int most = 100'000) {
    for (int i = 0; i < most && !core.Idle(); ++i) core.Step();
    return core.Idle();
  }

  int64_t now_ns = 1'000'000'000;
  bool refuse_events = false;
  ToldStreams told;
  FakeExecutor executor;
  FakePregate pregate;

 private:
  EngineOptions options_;
  StreamId last_id_ = 0;

 public:
  EngineCore core;  // behind what it uses
};

inline Request Plain(std::vector<int32_t> prompt, int64_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

// `count` ids, one up each.
inline std::vector<int32_t> Counted(int32_t from, int32_t count) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < count; ++i) ids.push_back((from + i) % 40);
  return ids;
}

inline void ExpectClean(const CoreRun& run) {
  const EngineStats stats = run.core.Stats();
  EXPECT_EQ(stats.first_violation, "");
  EXPECT_EQ(stats.unplanned_tokens, 0);
  EXPECT_EQ(stats.plan_mismatches, 0);
  EXPECT_THAT(run.core.Violations(), testing::ElementsAre());
  if (run.core.Idle()) {
    EXPECT_EQ(stats.kv_pages_used, 0);
  }
}

}  // namespace outrider::serve::test
