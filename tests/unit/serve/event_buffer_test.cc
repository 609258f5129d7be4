#include "serve/event_buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

namespace outrider::serve {
namespace {

using testing::ElementsAre;

Event Tokens(StreamId stream, std::vector<int32_t> tokens, Finish finish = Finish::kNone) {
  Event event;
  event.stream = stream;
  event.tokens = std::move(tokens);
  event.finish = finish;
  return event;
}

bool Readable(const EventBuffer& buffer) {
  pollfd wait{buffer.fd(), POLLIN, 0};
  return poll(&wait, 1, 0) == 1;
}

TEST(EventBuffer, MergesWhatWaitsAndKeepsTheOrderOfStreams) {
  EventBuffer buffer(10);
  EXPECT_TRUE(buffer.Push(Tokens(2, {1})));
  EXPECT_TRUE(buffer.Push(Tokens(1, {7})));
  EXPECT_TRUE(buffer.Push(Tokens(2, {3}, Finish::kStop)));
  const std::vector<Event> events = buffer.Take(10);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].stream, 2u);
  EXPECT_THAT(events[0].tokens, ElementsAre(1, 3));
  EXPECT_EQ(events[0].finish, Finish::kStop);
  EXPECT_EQ(events[1].stream, 1u);
}

TEST(EventBuffer, IsReadableWhileEventsWait) {
  EventBuffer buffer(10);
  EXPECT_FALSE(Readable(buffer));
  EXPECT_TRUE(buffer.Push(Tokens(1, {1})));
  EXPECT_TRUE(buffer.Push(Tokens(2, {1})));
  EXPECT_TRUE(Readable(buffer));
  EXPECT_EQ(buffer.Take(1).size(), 1u);
  EXPECT_TRUE(Readable(buffer));
  EXPECT_EQ(buffer.Take(1).size(), 1u);
  EXPECT_FALSE(Readable(buffer));
  EXPECT_TRUE(buffer.Take(1).empty());
}

TEST(EventBuffer, RefusesMoreThanItsMaximumButNeverTheLast) {
  EventBuffer buffer(3);
  EXPECT_TRUE(buffer.Push(Tokens(1, {1, 2})));
  EXPECT_TRUE(buffer.Push(Tokens(1, {3})));
  EXPECT_FALSE(buffer.Push(Tokens(1, {4})));
  EXPECT_TRUE(buffer.Push(Tokens(1, {}, Finish::kCancelled)));
  const std::vector<Event> events = buffer.Take(1);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_THAT(events[0].tokens, ElementsAre(1, 2, 3));
  EXPECT_EQ(events[0].finish, Finish::kCancelled);
}

}  // namespace
}  // namespace outrider::serve
