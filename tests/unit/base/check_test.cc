#include "base/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/result.h"

namespace outrider::base {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(Check, NamesPlaceConditionAndMessage) {
  const int got = 3;
  EXPECT_THAT([&] { OUTRIDER_CHECK(got == 4, "got ", got, " expected ", 4); },
              ThrowsMessage<CheckError>(
                  AllOf(HasSubstr("check_test.cc:"), HasSubstr("got == 4"), HasSubstr("got 3 expected 4"))));
}

TEST(Check, WorksWithoutMessage) {
  EXPECT_THAT([] { OUTRIDER_CHECK(1 > 2); }, ThrowsMessage<CheckError>(HasSubstr("1 > 2")));
}

TEST(Check, EvaluatesPartsOnlyOnFailure) {
  int evaluations = 0;
  OUTRIDER_CHECK(true, ++evaluations);
  EXPECT_EQ(evaluations, 0);
  EXPECT_THROW(OUTRIDER_CHECK(false, ++evaluations), CheckError);
  EXPECT_EQ(evaluations, 1);
}

TEST(Check, FitsIntoAnElseBranch) {
  bool reached_else = false;
  if (false)
    OUTRIDER_CHECK(false);
  else
    reached_else = true;
  EXPECT_TRUE(reached_else);
}

TEST(DebugCheck, FollowsTheBuild) {
#ifdef NDEBUG
  EXPECT_NO_THROW(OUTRIDER_DCHECK(false, "unused"));
#else
  EXPECT_THROW(OUTRIDER_DCHECK(false, "used"), CheckError);
#endif
}

Result<int> Half(int number) {
  if (number % 2 != 0) return Fail("ODD", std::to_string(number) + " is odd");
  return number / 2;
}

TEST(Result, CarriesValueOrError) {
  EXPECT_EQ(Half(8).value(), 4);
  ASSERT_FALSE(Half(7).has_value());
  EXPECT_EQ(Half(7).error(), (Error{"ODD", "7 is odd"}));
}

}  // namespace
}  // namespace outrider::base
