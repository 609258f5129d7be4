#include "coexec/timeline.h"

namespace outrider::coexec {

void Timeline::Add(const char* name, SpanKind kind, SpanThread thread, int64_t start_ns, int64_t duration_ns) {
  if (duration_ns < kShortestNs) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (spans_.size() == kSpansMax) spans_.pop_front();
  spans_.push_back({name, kind, thread, start_ns, duration_ns, step_});
}

void Timeline::SetStep(int64_t step) {
  std::lock_guard<std::mutex> lock(mutex_);
  step_ = step;
}

std::vector<Span> Timeline::Copy() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return {spans_.begin(), spans_.end()};
}

void Timeline::Clear() {
  std::lock_guard<std::mutex> lock(mutex_);
  spans_.clear();
}

}  // namespace outrider::coexec
