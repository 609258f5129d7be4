// Session, first use: claims the keys, verifies the mechanisms on this torch, starts the runner.

#include <pthread.h>

#include "coexec/session.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/settle.h"

namespace outrider::coexec {

bool Session::Load() {
  loaded_ = true;
  const auto& keys = seam::ClaimKeys(&Session::InnerHandler, &Session::OuterHandler);
  if (!keys.HasInner()) return false;
  seam::ProbeDataPointerLayout();
  seam::ProbeGraft();
  ApplyGraftMode();
  inner_ = std::make_unique<seam::InnerLane>(runner_, stats_);
  outer_ = std::make_unique<seam::OuterLane>(runner_, stats_, *inner_);
  runner_.Start();
  seam::InstallSettler(this);
  seam::WatchAutograd(*this);
  LearnEngineCallSites();
  InstallForkHandlers();
  return true;
}

// The autograd engine asks for the storage of every second gradient that reaches a node, without reading it.
void Session::LearnEngineCallSites() {
  seam::EnrolThread(true);
  inner_->BeginStep(0);
  seam::LearnEngineCallSites();
  inner_->EndStep();
  seam::EnrolThread(false);
  runner_.WaitAll();
  stats_ = {};
}

void Session::InstallForkHandlers() {
  pthread_atfork(
      [] { Get().BeforeFork(); },
      nullptr,
      [] {
        auto& session = Get();
        session.usable_ = false;
        session.in_step_ = false;
        session.runner_.AbandonAfterFork();
        seam::EnrolThread(false);
      });
}

}  // namespace outrider::coexec
