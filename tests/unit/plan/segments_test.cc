#include "plan/segments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"

namespace outrider::plan {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// One op per event; flags are set by the tests.
std::vector<LinearOp> Ops(uint32_t count) {
  std::vector<LinearOp> ops(count);
  for (uint32_t i = 0; i < count; ++i) ops[i].event = i;
  return ops;
}

TEST(Segments, AStepWithoutCutsIsOnePart) {
  EXPECT_THAT(CutParts({}, PreImages::kNone), IsEmpty());
  EXPECT_THAT(CutParts(Ops(5), PreImages::kNone), ElementsAre(Part{0, 5, 5, false}));
}

TEST(Segments, CutsBehindBackward) {
  std::vector<LinearOp> ops = Ops(6);
  ops[3].ends_backward = true;
  ops[5].persistent_write = true;  // the optimizer
  EXPECT_THAT(CutParts(ops, PreImages::kNone), ElementsAre(Part{0, 4, 4, false}, Part{4, 6, 6, false}));
}

TEST(Segments, EffectsBeforeBackwardForbidTheCutUnlessPreImagesAreKept) {
  for (bool LinearOp::* effect : {&LinearOp::persistent_write, &LinearOp::rng}) {
    std::vector<LinearOp> ops = Ops(6);
    ops[1].*effect = true;
    ops[3].ends_backward = true;
    EXPECT_THAT(CutParts(ops, PreImages::kNone), ElementsAre(Part{0, 6, 6, false}));
    EXPECT_THAT(CutParts(ops, PreImages::kKept), ElementsAre(Part{0, 4, 4, true}, Part{4, 6, 6, false}));
  }
}

TEST(Segments, AFetchAlwaysCuts) {
  std::vector<LinearOp> ops = Ops(4);
  ops[0].persistent_write = true;
  ops[1].fetched = true;
  EXPECT_THAT(CutParts(ops, PreImages::kNone), ElementsAre(Part{0, 2, 2, true}, Part{2, 4, 4, false}));
}

TEST(Segments, AFetchAtTheEndNeedsNoFurtherCut) {
  std::vector<LinearOp> ops = Ops(3);
  ops[2].fetched = true;
  EXPECT_THAT(CutParts(ops, PreImages::kNone), ElementsAre(Part{0, 3, 3, false}));
}

TEST(Segments, CutsWaitForTheEndOfTheEvent) {
  std::vector<LinearOp> ops = Ops(5);
  ops[1].fetched = true;
  ops[2].event = 1;
  EXPECT_THAT(CutParts(ops, PreImages::kNone), ElementsAre(Part{0, 3, 3, false}, Part{3, 5, 5, false}));
}

TEST(Segments, TheTailBeginsAtTheFirstLateBoundOp) {
  std::vector<LinearOp> ops = Ops(8);
  ops[3].ends_backward = true;
  ops[5].late_bound = true;
  ops[7].late_bound = true;
  EXPECT_THAT(CutParts(ops, PreImages::kNone), ElementsAre(Part{0, 4, 4, false}, Part{4, 5, 8, false}));
}

TEST(Segments, EachPartHasItsOwnTail) {
  std::vector<LinearOp> ops = Ops(4);
  ops[0].late_bound = true;
  ops[1].fetched = true;
  EXPECT_THAT(CutParts(ops, PreImages::kNone), ElementsAre(Part{0, 0, 2, false}, Part{2, 4, 4, false}));
}

TEST(Segments, EventsMustBeInOrder) {
  std::vector<LinearOp> ops = Ops(2);
  ops[0].event = 5;
  EXPECT_THROW(CutParts(ops, PreImages::kNone), base::CheckError);
}

}  // namespace
}  // namespace outrider::plan
