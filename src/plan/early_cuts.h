#pragma once
// Where a part of a step may end although its backward pass has not come. The places are the same in every step, so that
// the ranges between them are few, and far enough apart that a launch is worth its price.

#include <cstdint>
#include <span>
#include <vector>

namespace outrider::plan {

struct EarlyCutSizes {
  int ops_min = 4;           // device ops of the first parts ...
  int parts_of_a_size = 16;  // ... so many of them, then as many of twice the size, and so on
};

// `end_ops`: for each event before the last backward pass the number of device ops up to its end; never decreases.
// Per event: 1 where a part may end behind it.
std::vector<char> FindEarlyCuts(std::span<const int> end_ops, EarlyCutSizes sizes = {});

}  // namespace outrider::plan
