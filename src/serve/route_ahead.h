#pragma once
// Routes prompts while a pass runs on another machine. A thread of its own sleeps in between.

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "base/result.h"
#include "serve/router_pass.h"

namespace outrider::serve {

class RouteAhead {
 public:
  struct Done {
    std::vector<RequestState*> states;  // those given to Start; empty: nothing was under way
    base::Result<RouteCost> cost;       // codes: those of the router; E_INTERNAL it threw
  };

  explicit RouteAhead(Pregate& pregate);
  ~RouteAhead();
  RouteAhead(const RouteAhead&) = delete;
  RouteAhead& operator=(const RouteAhead&) = delete;

  // As RouteRest. Until Finish nobody else uses the router, or text, plan and route pages of the states.
  void Start(std::vector<RequestState*> states);
  Done Finish();

 private:
  void Loop();

  Pregate& pregate_;
  std::mutex mutex_;
  std::condition_variable changed_;
  enum class Stage : uint8_t { kIdle, kAsked, kDone, kStop } stage_ = Stage::kIdle;
  std::vector<RequestState*> states_;
  base::Result<RouteCost> cost_;
  std::thread thread_;
};

}  // namespace outrider::serve
