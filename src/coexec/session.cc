#include "coexec/session.h"

#include <pthread.h>

#include <exception>
#include <utility>

#include "base/clock.h"
#include "seam/gil.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/settle.h"

namespace outrider::coexec {

using seam::FlushReason;

Session& Session::Get() {
  // Never destroyed: tensors of the program may outlive every static object.
  static auto* session = new Session();
  return *session;
}

Session::Session()
    : options_{{"lane", 0},
               {"flush", 0},
               {"flush_seed", 1},
               {"flush_one_in", 3},
               {"force_step", -1},
               {"force_event", -1},
               {"graft", 1},
               {"graft_fallback", 1},
               {"feed_clone", 1},
               {"version_replay", 1},
               {"runner_delay_us", 0},
               {"run_ahead_steps", 1},
               {"early_launch", 1},
               {"copied_mib_max", 1024},
               {"wait_deadline_ms", 600'000}} {}

bool Session::EnsureLoaded() {
  if (!loaded_) usable_ = Load();
  return usable_;
}

bool Session::BeginStep(const std::string& name) {
  if (in_step_ || in_plain_step_) return false;
  if (owner_ != std::thread::id() && owner_ != std::this_thread::get_id()) return false;
  if (note_ = WhyOff(); !note_.empty()) {
    BeginTiming(name);
    in_plain_step_ = true;
    return true;
  }
  owner_ = std::this_thread::get_id();
  // Run-ahead: at most one step may be under way when the next begins.
  runner_.WaitQuietly(options_["run_ahead_steps"] > 0 ? previous_step_end_ : runner_.NextSequence() - 1);
  runner_.RethrowError();
  BeginTiming(name);
  seam::EnrolThread(true);
  ApplyThreadState();
  ApplyOptions();
  previous_step_end_ = runner_.NextSequence() - 1;
  ChooseDevice();
  inner_->BeginStep(step_);
  switch (outer_->BeginStep(step_, name, WhyNotOuter())) {
    case seam::OuterLane::Mode::kCover: inner_->SetMode(seam::InnerLane::Mode::kPassThrough); break;
    case seam::OuterLane::Mode::kRecord: inner_->SetListener(outer_->Listener()); break;
    default: break;
  }
  in_step_ = true;
  return true;
}

// Empty, or why steps run plainly.
std::string Session::WhyOff() {
  if (options_["lane"] == static_cast<int64_t>(LaneChoice::kOff)) return "OFF_OPTION: lane is \"off\"";
  if (EnsureLoaded()) return "";
  return seam::Keys().HasInner() ? "OFF_ENV: the graph runner has been stopped" : "OFF_KEYS: " + seam::DescribeKeys();
}

void Session::BeginTiming(const std::string& name) {
  ++step_;
  name_ = name;
  stats_ = {};
  stats_.flushes[static_cast<size_t>(FlushReason::kStepOutside)] = std::exchange(outside_waits_, 0);
  timeline_.SetStep(static_cast<int64_t>(step_));
  runner_.TakeHostWaitNs();  // waits between steps are no part of this one
  step_start_ns_ = base::NowNs();
}

void Session::FinishPlainStep() {
  in_plain_step_ = false;
  Report::StepFacts facts;
  facts.step = static_cast<int64_t>(step_ - first_step_) - 1;
  facts.name = name_;
  facts.lane = "off";
  facts.tier = "eager";
  facts.note = note_;
  facts.host_ns = base::NowNs() - step_start_ns_;
  report_.Add(facts, stats_);
}

// A program computes where it was seen to compute: on the accelerator as soon as one of its operators did.
void Session::ChooseDevice() {
  if (const auto seen = inner_->TakeSeenDevice()) {
    const auto [it, fresh] = devices_.try_emplace(name_, *seen);
    if (!fresh && it->second == *seen) return inner_->SetComputeDevice(*seen);
    it->second = *seen;
    outer_->Forget(name_);
  }
  const auto known = devices_.find(name_);
  inner_->SetComputeDevice(known == devices_.end() ? c10::Device(c10::kCPU) : known->second);
}

// Empty, or why no step may use the outer lane now.
const char* Session::WhyNotOuter() {
  if (options_["lane"] == static_cast<int64_t>(LaneChoice::kInner)) return "INNER_OPTION: lane is \"inner\"";
  if (!seam::Keys().HasOuter()) return "INNER_ENV: no dispatch key is free for the outer lane";
  // It has to see accesses to persistent tensors before it takes writes to them for granted.
  if (seam::CurrentGraftMode() == seam::GraftMode::kSynchronous)
    return "INNER_ENV: accesses to ordinary tensors cannot be seen (graft=off)";
  return "";
}

void Session::ApplyThreadState() {
  const auto state = seam::ThreadState::Current();
  if (state == thread_state_) return;
  thread_state_ = state;
  auto& work = runner_.NextSlot();
  work.Clear();
  work.thread_state = std::make_unique<seam::ThreadState>(state);
  runner_.Submit();
}

void Session::ApplyGraftMode() {
  const bool graft = options_["graft"] != 0, fallback = options_["graft_fallback"] != 0;
  seam::SetGraftMode(graft      ? seam::GraftMode::kGrafted
                     : fallback ? seam::GraftMode::kSynchronous
                                : seam::GraftMode::kUngated);
}

void Session::ApplyOptions() {
  ApplyGraftMode();
  runner_.Options().delay_us.store(options_["runner_delay_us"]);
  runner_.Options().wait_deadline_ms = options_["wait_deadline_ms"];
  outer_->Options().early = static_cast<seam::OuterOptions::Early>(options_["early_launch"]);
  outer_->Options().copied_bytes_max = options_["copied_mib_max"] << 20;
  auto& inner = inner_->Options();
  inner.feed_clone = options_["feed_clone"] != 0;
  inner.version_replay = options_["version_replay"] != 0;
  inner.flush_every_op = options_["flush"] == 1;
  inner.flush_random_one_in = options_["flush"] == 2 ? static_cast<uint32_t>(options_["flush_one_in"]) : 0;
  inner.flush_random_seed = static_cast<uint64_t>(options_["flush_seed"]) * 2 + 1;
  if (options_["force_step"] + static_cast<int64_t>(first_step_) + 1 != static_cast<int64_t>(step_)) return;
  inner_->ForceDivergenceAt(options_["force_event"]);
  outer_->ForceDivergenceAt(options_["force_event"]);
}

void Session::EndStep() { FinishStep(false); }
void Session::AbortStep() { FinishStep(true); }

void Session::FinishStep(bool aborted) {
  if (in_plain_step_) FinishPlainStep();
  if (!in_step_) return;
  in_step_ = false;
  const int64_t events = outer_->EventIndex();
  const bool covered = outer_->CurrentMode() == seam::OuterLane::Mode::kCover;
  const bool recorded = !aborted && outer_->CurrentMode() == seam::OuterLane::Mode::kRecord;
  aborted ? outer_->AbortStep() : outer_->EndStep();
  note_ = outer_->Note();
  inner_->EndStep();
  if (aborted) stats_.Diverge({seam::DivergenceReason::kException, events > 0 ? events : inner_->OpIndex(), "end of step", "exception", "", seam::UserFrame()});
  Report::StepFacts facts;
  facts.step = static_cast<int64_t>(step_ - first_step_) - 1;
  facts.name = name_;
  facts.lane = covered ? "outer" : stats_.covered_ops > 0 ? "inner" : "record";
  facts.tier = stats_.covered_ops > 0 ? "T0" : "eager";
  facts.recorded = recorded;
  facts.outcome = stats_.outcome;
  facts.note = note_;
  facts.host_ns = base::NowNs() - step_start_ns_;
  facts.host_wait_ns = runner_.TakeHostWaitNs();
  facts.runner_busy_ns = runner_.TakeBusyNs();
  timeline_.Add("step", SpanKind::kStep, SpanThread::kImperative, step_start_ns_, facts.host_ns);
  report_.Add(facts, stats_);
}

void Session::Flush(FlushReason reason) {
  if (!usable_ || owner_ != std::this_thread::get_id()) {
    if (usable_) runner_.WaitQuietly(runner_.NextSequence() - 1);
    return;
  }
  outer_->LaunchPending();
  if (!runner_.Idle()) stats_.Flush(reason);
  runner_.WaitAll();
}

void Session::BeforeFork() {
  if (!usable_) return;
  outer_->LaunchPending();
  if (owner_ == std::this_thread::get_id() && !runner_.Idle()) stats_.Flush(FlushReason::kFork);
  runner_.WaitQuietly(runner_.NextSequence() - 1);
}

void Session::WaitFor(uint64_t sequence) {
  if (owner_ == std::this_thread::get_id()) {
    outer_->NoteWait(sequence);
    if (!in_step_ && !runner_.Done(sequence)) ++outside_waits_;
  }
  runner_.WaitFor(sequence);
}

void Session::FlushForFlag(bool sets) {
  // What has been validated must not be replayed under the new setting.
  if (sets && usable_ && in_step_ && owner_ == std::this_thread::get_id()) outer_->CommitOrDiverge(seam::DivergenceReason::kEnv, "a numeric flag");
  Flush(FlushReason::kFlag);
}

// Thread count and floating-point control are flags of the thread: the graph runner follows at this place in the order.
void Session::FlagChanged(const std::string& flag, const std::string& value) {
  seam::NoteFlag(flag, value);
  if (in_step_ && owner_ == std::this_thread::get_id()) ApplyThreadState();
}

void Session::Leave() {
  if (!usable_ || owner_ != std::this_thread::get_id()) return;
  if (in_step_) FinishStep(false);
  seam::EnrolThread(false);
  owner_ = {};
  runner_.WaitAll();
}

seam::BackwardAnswer Session::BackwardEnter(const torch::autograd::edge_list& roots,
                                            const std::vector<at::Tensor>& gradients, bool plain) {
  if (!in_step_ || owner_ != std::this_thread::get_id() || suspended_ > 0) return seam::BackwardAnswer::kPlain;
  return outer_->BackwardEnter(roots, gradients, plain);
}

void Session::BuildsOwnNodes(const std::string& how) {
  if (in_step_ && owner_ == std::this_thread::get_id()) outer_->BuildsOwnNodes(how);
}

void Session::RevealHistory(const at::Tensor& tensor, const std::string& how) {
  if (in_step_ && owner_ == std::this_thread::get_id()) outer_->RevealHistory(tensor, how);
}

void Session::RevealView(const at::Tensor& tensor, const std::string& how) {
  if (in_step_ && owner_ == std::this_thread::get_id()) outer_->RevealView(tensor, how);
}

void Session::RevealGraph(const std::string& how) {
  if (in_step_ && owner_ == std::this_thread::get_id()) outer_->RevealGraph(how);
}

void Session::BackwardExit(bool completed) {
  if (in_step_) outer_->BackwardExit(completed);
}

void Session::Suspend() {
  if (!usable_ || owner_ != std::this_thread::get_id() || suspended_++ > 0) return;
  outer_->CommitOrDiverge(seam::DivergenceReason::kEnv, "compiled code");
  runner_.WaitAll();
  seam::EnrolThread(false);
}

void Session::Resume() {
  if (suspended_ == 0 || --suspended_ > 0) return;
  if (usable_ && owner_ == std::this_thread::get_id()) seam::EnrolThread(true);
}

void Session::Reset() {
  if (usable_) {
    runner_.WaitAll();
    // Signatures stay: work records of living tensors point into them.
    outer_->Reset();
    inner_->Paths().Reset();
  }
  first_step_ = step_;
  report_.Clear();
  timeline_.Clear();
}

void Session::Shutdown() {
  if (!usable_) return;
  seam::EnrolThread(false);
  usable_ = false;
  runner_.WaitQuietly(runner_.NextSequence() - 1);
  runner_.Stop();
}

void Session::SetOption(const std::string& key, int64_t value) {
  auto it = options_.find(key);
  TORCH_CHECK_VALUE(it != options_.end(), "outrider: unknown option '", key, "'");
  it->second = value;
}

int64_t Session::GetOption(const std::string& key) const {
  auto it = options_.find(key);
  TORCH_CHECK_VALUE(it != options_.end(), "outrider: unknown option '", key, "'");
  return it->second;
}

std::string Session::Describe() const {
  return seam::DescribeKeys() + " graft=" + (seam::CurrentGraftMode() == seam::GraftMode::kGrafted ? "on" : "off") +
         " engine call sites=" + std::to_string(seam::LearntCallSites());
}

void Session::SettleUncommitted(seam::StorageRecord& record, seam::Access access) { outer_->SettleUncommitted(record, access); }

void Session::CountRawAccess(bool waited) {
  if (waited) stats_.Flush(FlushReason::kRawAccess);
}

void Session::InnerHandler(const c10::OperatorHandle& op, c10::DispatchKeySet keys, seam::Stack* stack) {
  const auto inner_key = seam::Keys().inner;
  // Elsewhere autograd has taken a composite operator apart; in inference mode its parts come back through the lane.
  if (Get().inner_->TakesApart(op)) {
    op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, inner_key), stack);
    return;
  }
  c10::impl::ExcludeDispatchKeyGuard guard(inner_key);
  const auto next = keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, inner_key);
  Get().inner_->OnOp(op, next, stack);
}

void Session::OuterHandler(const c10::OperatorHandle& op, c10::DispatchKeySet keys, seam::Stack* stack) {
  const auto outer_key = seam::Keys().outer;
  c10::impl::ExcludeDispatchKeyGuard guard(outer_key);
  Get().outer_->OnEvent(op, keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, outer_key), stack);
}

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
        seam::SetStepCovered(false);
        session.runner_.AbandonAfterFork();
        seam::EnrolThread(false);
      });
}

}  // namespace outrider::coexec
