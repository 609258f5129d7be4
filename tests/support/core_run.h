#pragma once
// The engine without its thread, on the fake machine, with a clock that stands unless a test moves it.

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

}  // namespace outrider::serve::test
