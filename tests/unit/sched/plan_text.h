#pragma once
// A step plan as text, to compare and to read: "d0 d2 p1:3 | held 4 | experts 5".

#include <string>

#include "sched/step_plan.h"

namespace outrider::sched {

inline std::string Text(const StepPlan& plan) {
  std::string text;
  for (const Slice& slice : plan.slices) {
    text += (slice.lane == Lane::kDecode ? "d" : "p") + std::to_string(slice.request.value);
    if (slice.lane == Lane::kPrefill) text += ":" + std::to_string(slice.tokens);
    text += " ";
  }
  text += "| held";
  for (const RequestId request : plan.held) text += " " + std::to_string(request.value);
  return text + " | experts " + std::to_string(plan.experts);
}

}  // namespace outrider::sched
