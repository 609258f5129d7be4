#include "plan/late_bound.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <limits>

#include "base/check.h"

namespace outrider::plan {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

ScalarBits Number(double value) { return {std::bit_cast<uint64_t>(value), 0}; }
ScalarBits Integer(uint64_t value) { return {value, 1}; }

// One event with one op of its own.
ScalarRecording OneOp(Scalars event, Scalars op) { return {{std::move(event)}, {{0, std::move(op)}}}; }

ScalarPlan Plan(std::vector<ScalarRecording> recordings) { return FindLateBound(recordings); }

TEST(LateBound, AChangingScalarOfTheEventIsFed) {
  const ScalarPlan plan = Plan({OneOp({Number(0.1), Number(7)}, {Number(7), Number(0.1)}),
                                OneOp({Number(0.2), Number(7)}, {Number(7), Number(0.2)})});
  EXPECT_THAT(plan.late_bound, ElementsAre(LateBoundScalar{0, 1, 0}));
  EXPECT_THAT(plan.mismatches, IsEmpty());
}

TEST(LateBound, ConstantScalarsAreStructural) {
  const ScalarRecording same = OneOp({Number(1)}, {Number(1), Number(2)});
  const ScalarPlan plan = Plan({same, same});
  EXPECT_THAT(plan.late_bound, IsEmpty());
  EXPECT_THAT(plan.mismatches, IsEmpty());
}

TEST(LateBound, AComputedScalarIsAMismatch) {
  const ScalarPlan plan =
      Plan({OneOp({Number(0.1)}, {Number(1 / (1 - 0.1))}), OneOp({Number(0.2)}, {Number(1 / (1 - 0.2))})});
  EXPECT_THAT(plan.late_bound, IsEmpty());
  EXPECT_THAT(plan.mismatches, ElementsAre(ScalarMismatch{MismatchReason::kNoSource, 0, 0},
                                           ScalarMismatch{MismatchReason::kUnused, 0, 0}));
}

TEST(LateBound, AnotherEventsScalarDoesNotCount) {
  const auto recording = [](double value) {
    return ScalarRecording{{{Number(value)}, {}}, {{0, {Number(value)}}, {1, {Number(value)}}}};
  };
  const ScalarPlan plan = Plan({recording(1), recording(2)});
  EXPECT_THAT(plan.late_bound, ElementsAre(LateBoundScalar{0, 0, 0}));
  EXPECT_THAT(plan.mismatches, ElementsAre(ScalarMismatch{MismatchReason::kNoSource, 1, 0}));
}

TEST(LateBound, EqualInOneRecordingOnlyIsNotEnough) {
  const ScalarPlan plan =
      Plan({OneOp({Number(1)}, {Number(1)}), OneOp({Number(2)}, {Number(2)}), OneOp({Number(3)}, {Number(4)})});
  EXPECT_THAT(plan.mismatches, testing::Contains(ScalarMismatch{MismatchReason::kNoSource, 0, 0}));
}

TEST(LateBound, BitsAndKindsDecide) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(Plan({OneOp({Number(nan)}, {Number(nan)}), OneOp({Number(nan)}, {Number(nan)})}).mismatches, IsEmpty());
  EXPECT_THAT(Plan({OneOp({Number(0.0)}, {Number(0.0)}), OneOp({Number(-0.0)}, {Number(-0.0)})}).late_bound,
              ElementsAre(LateBoundScalar{0, 0, 0}));
  EXPECT_THAT(Plan({OneOp({Integer(1)}, {{1, 0}}), OneOp({Integer(2)}, {{2, 0}})}).late_bound, IsEmpty());
}

TEST(LateBound, ListsOfOneValueGoByPosition) {
  const auto list = [](double value) { return Scalars(3, Number(value)); };
  const ScalarPlan plan = Plan({OneOp(list(1), list(1)), OneOp(list(2), list(2))});
  EXPECT_THAT(plan.late_bound,
              ElementsAre(LateBoundScalar{0, 0, 0}, LateBoundScalar{0, 1, 1}, LateBoundScalar{0, 2, 2}));
  EXPECT_THAT(plan.mismatches, IsEmpty());
}

TEST(LateBound, TwoEqualSourcesElsewhereAreAmbiguous) {
  const auto recording = [](double value) { return OneOp({Number(0), Number(value), Number(value)}, {Number(value)}); };
  EXPECT_THAT(Plan({recording(1), recording(2)}).mismatches,
              testing::Contains(ScalarMismatch{MismatchReason::kAmbiguous, 0, 0}));
}

TEST(LateBound, AnEventScalarThatReachesNoOpIsAMismatch) {
  const ScalarPlan plan = Plan({OneOp({Number(1)}, {Number(5)}), OneOp({Number(2)}, {Number(5)})});
  EXPECT_THAT(plan.mismatches, ElementsAre(ScalarMismatch{MismatchReason::kUnused, 0, 0}));
}

TEST(LateBound, RecordingsOfDifferentShapeDoNotAgree) {
  const ScalarPlan plan = Plan({OneOp({Number(1)}, {Number(1)}), OneOp({Number(1)}, {})});
  EXPECT_THAT(plan.mismatches, ElementsAre(ScalarMismatch{MismatchReason::kShape, 0, 0}));
}

TEST(LateBound, NeedsTwoRecordingsAndSoundEvents) {
  EXPECT_THROW(Plan({OneOp({}, {})}), base::CheckError);
  const ScalarRecording wild{{}, {{3, {}}}};
  EXPECT_THROW(Plan({wild, wild}), base::CheckError);
}

}  // namespace
}  // namespace outrider::plan
