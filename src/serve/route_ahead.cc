#include "serve/route_ahead.h"

#include <pthread.h>

#include <exception>
#include <string>
#include <utility>

namespace outrider::serve {

RouteAhead::RouteAhead(Pregate& pregate) : pregate_(pregate), thread_([this] { Loop(); }) {}

RouteAhead::~RouteAhead() {
  (void)Finish();
  {
    const std::lock_guard lock(mutex_);
    stage_ = Stage::kStop;
  }
  changed_.notify_all();
  thread_.join();
}

void RouteAhead::Start(std::vector<RequestState*> states) {
  {
    const std::lock_guard lock(mutex_);
    states_ = std::move(states);
    stage_ = Stage::kAsked;
  }
  changed_.notify_all();
}

RouteAhead::Done RouteAhead::Finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stage_ != Stage::kAsked; });
  stage_ = Stage::kIdle;
  return {std::exchange(states_, {}), std::exchange(cost_, RouteCost{})};
}

void RouteAhead::Loop() {
  pthread_setname_np(pthread_self(), "outrider-route");
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stage_ == Stage::kAsked || stage_ == Stage::kStop; });
    if (stage_ == Stage::kStop) return;
    lock.unlock();
    base::Result<RouteCost> cost;
    try {
      cost = RouteRest(&pregate_, states_);
    } catch (const std::exception& e) {
      cost = base::Fail("E_INTERNAL", std::string("the router: ") + e.what());
    }
    lock.lock();
    cost_ = std::move(cost);
    stage_ = Stage::kDone;
    changed_.notify_all();
  }
}

}  // namespace outrider::serve
