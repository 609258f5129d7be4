#include "seam/env.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

namespace outrider::seam {
namespace {

TEST(Env, FlagsAreComparedByValue) {
  NoteFlag("precision", "high");
  const Env before = Env::Current();
  NoteFlag("precision", "low");
  EXPECT_NE(Env::Current(), before);
  NoteFlag("other", "on");
  NoteFlag("precision", "high");
  EXPECT_NE(Env::Current(), before) << "another flag is set";
  NoteFlag("other", "off");
  const Env off = Env::Current();
  NoteFlag("other", "on");
  NoteFlag("other", "off");
  EXPECT_EQ(Env::Current(), off);
}

TEST(Env, RestoreBringsModesBack) {
  const Env normal = Env::Current();
  const torch::NoGradGuard no_grad;
  EXPECT_NE(Env::Current(), normal);
  const Env inside = Env::Current();
  normal.Restore();
  EXPECT_TRUE(torch::GradMode::is_enabled());
  inside.Restore();
  EXPECT_FALSE(torch::GradMode::is_enabled());
}

TEST(ThreadState, IsAdoptedByAnotherThread) {
  const ThreadState mine = ThreadState::Current();
  ThreadState seen;
  std::thread([&] {
    mine.Adopt();
    seen = ThreadState::Current();
  }).join();
  EXPECT_EQ(seen, mine);
}

}  // namespace
}  // namespace outrider::seam
