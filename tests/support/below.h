#pragma once
// Numbers for property tests.

#include <rapidcheck.h>

#include <cstdint>

namespace outrider {

// A number in [0, count), drawn from the whole range from the first case on.
inline uint32_t Below(uint32_t count) {
  return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<uint32_t>(0, count));
}

}  // namespace outrider
