#pragma once
// Events on their way from the engine's thread to the reader: at most one waiting event per stream, which grows until
// it is taken, and a file descriptor that is readable while events wait.

#include <cstdint>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "serve/request.h"

namespace outrider::serve {

class EventBuffer {
 public:
  // `tokens_max`: of one stream. The number of streams is bounded by the engine's caps on requests, plus those that
  // ended and were not polled yet.
  explicit EventBuffer(int64_t tokens_max);
  ~EventBuffer();
  EventBuffer(const EventBuffer&) = delete;
  EventBuffer& operator=(const EventBuffer&) = delete;

  // By the engine's thread. False: the stream's reader is too slow, the tokens were dropped; only a last event (one
  // with a finish) may follow, and is always taken.
  bool Push(Event event);

  // By any thread: the oldest waiting events, of `max` streams at most.
  std::vector<Event> Take(int64_t max);

  // Readable while events wait. Owned by the buffer.
  int fd() const { return fd_; }

 private:
  const int64_t tokens_max_;
  int fd_ = -1;
  std::mutex mutex_;
  std::unordered_map<StreamId, Event> waiting_;  // guarded by mutex_
  std::deque<StreamId> order_;                   // guarded by mutex_; the keys of waiting_
};

}  // namespace outrider::serve
