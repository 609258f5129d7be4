#pragma once
// The two kernel calls behind every sleep of this project. std::atomic::wait has no time limit, hence these.

#include <atomic>
#include <cstdint>

#include "base/clock.h"

namespace outrider::base {

// Sleeps while `word` equals `expected`, at most until `deadline`. May return early: callers check their condition
// again.
void FutexWait(const std::atomic<uint32_t>& word, uint32_t expected, Deadline deadline);

// Wakes every thread that sleeps on `word`.
void FutexWakeAll(const std::atomic<uint32_t>& word);

}  // namespace outrider::base
