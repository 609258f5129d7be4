#include "plan/peak_bytes.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/check.h"

namespace outrider::plan {
namespace {

const std::vector<SlotLife> kSlots = {{0, 1, 10}, {1, 2, 20}, {2, 3, 40}, {-1, -1, 1000}};

TEST(PeakBytes, LargestSumOfWhatIsAliveTogether) {
  EXPECT_EQ(PeakBytes({}, 0), 0u);
  EXPECT_EQ(PeakBytes(kSlots, 4), 60u);
}

TEST(PeakBytes, WhatIsKeptStaysToTheEnd) {
  EXPECT_EQ(PeakBytes(kSlots, 4, 1), 70u);
  EXPECT_EQ(PeakBytes(kSlots, 4, 4), 70u);
}

TEST(PeakBytes, UsesOutsideTheListAreRefused) {
  const std::vector<SlotLife> beyond = {{0, 4, 1}};
  EXPECT_THROW(PeakBytes(beyond, 4), base::CheckError);
}

}  // namespace
}  // namespace outrider::plan
