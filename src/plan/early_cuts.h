#pragma once
// Where a part of a step may end although neither a backward pass nor the end of the step has come. The places are the
// same in every step, so that the ranges between them are few, and far enough apart that a launch is worth its price.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace outrider::plan {

struct EarlyCutSizes {
  int ops_min = 4;           // device ops of the first parts ...
  int parts_of_a_size = 16;  // ... so many of them, then as many of twice the size, and so on
};

// `first_op`: the device ops before the first of these events; `end_ops`: for each event those up to its end; never
// decreases. Per event: 1 where a part may end behind it.
std::vector<char> FindEarlyCuts(std::span<const int> end_ops, int first_op = 0, EarlyCutSizes sizes = {});

// For devices where one launch runs a whole range: at most `parts` parts of about equal size. The last one ends where the
// events do, and has no cut of its own.
std::vector<char> FindEqualCuts(std::span<const int> end_ops, int first_op, int parts);

// One cut near the start of a step whose memory bears no more: `end_ops` are those of the events before its first backward
// pass, `bytes` what each op makes, which stands for the time that it takes on a device. The event behind which the device
// has about `share` of all that to do, and some ops; -1 where that is the last one.
int FindHeadCut(std::span<const int> end_ops, std::span<const size_t> bytes, double share);

struct StepCuts {
  std::vector<char> early;  // per event, for a runner that takes op by op
  std::vector<char> graph;  // per event, for device graphs
};

// The cuts of a whole step: of what comes before event `last_backward` (-1: no backward pass) and of what comes behind it.
StepCuts FindStepCuts(std::span<const int> end_ops, int last_backward);

}  // namespace outrider::plan
