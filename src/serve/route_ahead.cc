#include "serve/route_ahead.h"

#include <pthread.h>

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

void RouteAhead::Start(RouteWork work) {
  {
    const std::lock_guard lock(mutex_);
    done_ = {std::move(work), {}};
    stage_ = Stage::kAsked;
  }
  changed_.notify_all();
}

RouteAhead::Done RouteAhead::Finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stage_ != Stage::kAsked; });
  stage_ = Stage::kIdle;
  return std::exchange(done_, {});
}

void RouteAhead::Loop() {
  pthread_setname_np(pthread_self(), "outrider-route");
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stage_ == Stage::kAsked || stage_ == Stage::kStop; });
    if (stage_ == Stage::kStop) return;
    lock.unlock();
    base::Result<void> result = done_.work.Run(pregate_);
    lock.lock();
    done_.result = std::move(result);
    stage_ = Stage::kDone;
    changed_.notify_all();
  }
}

}  // namespace outrider::serve
