#include "serve/event_buffer.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <iterator>
#include <utility>

#include "base/check.h"

namespace outrider::serve {
namespace {

template <class T>
void Append(std::vector<T>& to, std::vector<T>&& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

void Merge(Event& to, Event&& from) {
  Append(to.tokens, std::move(from.tokens));
  Append(to.experts, std::move(from.experts));
  Append(to.logprobs, std::move(from.logprobs));
  to.finish = from.finish;
  to.error = std::move(from.error);
  to.prompt_tokens = from.prompt_tokens;
  to.cached_tokens = from.cached_tokens;
  to.written_tokens = from.written_tokens;
}

}  // namespace

EventBuffer::EventBuffer(int64_t tokens_max) : tokens_max_(tokens_max), fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  OUTRIDER_CHECK(fd_ >= 0, "eventfd: errno ", errno);
}

EventBuffer::~EventBuffer() { close(fd_); }

bool EventBuffer::Push(Event event) {
  const std::lock_guard lock(mutex_);
  const auto found = waiting_.find(event.stream);
  if (found != waiting_.end()) {
    const auto tokens = static_cast<int64_t>(found->second.tokens.size() + event.tokens.size());
    if (event.finish == Finish::kNone && tokens > tokens_max_) return false;
    Merge(found->second, std::move(event));
    return true;
  }
  const StreamId stream = event.stream;
  if (order_.empty()) {
    const uint64_t one = 1;
    OUTRIDER_CHECK(write(fd_, &one, sizeof(one)) == sizeof(one), "eventfd: errno ", errno);
  }
  order_.push_back(stream);
  waiting_.emplace(stream, std::move(event));
  return true;
}

std::vector<Event> EventBuffer::Take(int64_t max) {
  std::vector<Event> out;
  const std::lock_guard lock(mutex_);
  if (order_.empty()) return out;
  while (!order_.empty() && static_cast<int64_t>(out.size()) < max) {
    const auto found = waiting_.find(order_.front());
    out.push_back(std::move(found->second));
    waiting_.erase(found);
    order_.pop_front();
  }
  if (order_.empty()) {
    uint64_t count = 0;
    OUTRIDER_CHECK(read(fd_, &count, sizeof(count)) == sizeof(count), "eventfd: errno ", errno);
  }
  return out;
}

}  // namespace outrider::serve
