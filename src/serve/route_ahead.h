#pragma once
// Routes prompts while a pass runs on another machine. A thread of its own sleeps in between.

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "base/result.h"
#include "serve/router_pass.h"

namespace outrider::serve {

class RouteAhead {
 public:
  struct Done {
    RouteWork work;             // as given to Start; without tokens: nothing was under way
    base::Result<void> result;  // of its Run
  };

  explicit RouteAhead(Pregate& pregate);
  ~RouteAhead();
  RouteAhead(const RouteAhead&) = delete;
  RouteAhead& operator=(const RouteAhead&) = delete;

  // Runs the work. Until Finish nobody else uses the router, or changes text and route pages of the states.
  void Start(RouteWork work);
  Done Finish();

 private:
  void Loop();

  Pregate& pregate_;
  std::mutex mutex_;
  std::condition_variable changed_;
  enum class Stage : uint8_t { kIdle, kAsked, kDone, kStop } stage_ = Stage::kIdle;
  Done done_;
  std::thread thread_;
};

}  // namespace outrider::serve
