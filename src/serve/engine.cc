#include "serve/engine.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "base/check.h"
#include "serve/admission.h"

namespace outrider::serve {
namespace {

constexpr int64_t kIdleWaitMs = 100;    // of the engine's thread, between two looks at an empty inbox
constexpr int64_t kCutWaitMs = 60'000;  // for the step under way, when the rest is cancelled

std::chrono::steady_clock::time_point TimeOf(base::Deadline deadline) {
  return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(deadline.AtNs()));
}

}  // namespace

base::Result<std::unique_ptr<Engine>> Engine::Make(std::unique_ptr<Executor> executor, std::unique_ptr<Pregate> pregate,
                                                   EngineOptions options) {
  OUTRIDER_CHECK(executor != nullptr);
  OUTRIDER_CHECK((pregate != nullptr) == (executor->shape().experts > 0), "experts and pre-gate do not fit");
  auto complete = CompleteOptions(std::move(options), executor->shape());
  if (!complete) return tl::unexpected(complete.error());
  return std::unique_ptr<Engine>(new Engine(std::move(executor), std::move(pregate), std::move(*complete)));
}

Engine::Engine(std::unique_ptr<Executor> executor, std::unique_ptr<Pregate> pregate, EngineOptions options)
    : executor_(std::move(executor)),
      pregate_(std::move(pregate)),
      options_(std::move(options)),
      events_(options_.buffered_tokens_max),
      core_(*executor_, pregate_.get(), options_, [this](Event event) { return Tell(std::move(event)); }),
      stats_(core_.Stats()),
      step_end_ns_(base::NowNs()),
      thread_([this] { Loop(); }) {}

Engine::~Engine() { Close(); }

tl::expected<StreamId, Rejection> Engine::Submit(Request request) {
  const auto text_max = TextMax(request, executor_->shape(), options_);
  const std::lock_guard lock(mutex_);
  const auto refuse = [this](Rejection rejection) {
    ++rejected_[rejection.error.code];
    return tl::unexpected(std::move(rejection));
  };
  if (!text_max) return refuse({text_max.error(), 0});
  if (!stats_.device_error.empty())
    return refuse({{"E_DEVICE", "no new requests: the machine is lost (" + stats_.device_error + ")"}, 0});
  if (draining_) return refuse({{"E_DRAINING", "no new requests: the engine finishes what it has"}, 0});
  if (auto capped = CheckRoom(request, *text_max); !capped) return refuse(capped.error());
  auto state = MakeState(std::move(request), *text_max);
  state->id = next_id_++;
  SetTimes(*state, options_, options_.now_ns());
  Charge(*state);
  settled_ = false;
  if (live_.size() == 1) step_end_ns_ = base::NowNs();
  ++open_streams_;
  const StreamId id = state->id;
  inbox_.push_back(std::move(state));
  work_.notify_one();
  return id;
}

tl::expected<void, Rejection> Engine::CheckRoom(const Request& request, int64_t text_max) const {
  if (open_streams_ >= options_.streams_max)
    return tl::unexpected(Rejection{{"E_BUSY", "streams not read to their end: found " + std::to_string(open_streams_) +
                                                   ", expected fewer than " + std::to_string(options_.streams_max)},
                                    1});
  Admitted admitted;
  admitted.total = {static_cast<int64_t>(live_.size()), tokens_charged_};
  if (const auto of = tenants_.find(request.tenant.name); of != tenants_.end()) admitted.tenant = of->second;
  admitted.waiting = std::ssize(inbox_);
  for (const auto& state : inbox_) {
    admitted.waiting_prompt_tokens += state->prompt_tokens();
    admitted.waiting_tokens += state->text_max;
  }
  return CheckCaps(request, text_max, admitted, stats_, options_);
}

void Engine::Charge(const RequestState& state) {
  live_[state.id] = {state.text_max, state.request.tenant.name};
  tokens_charged_ += state.text_max;
  sched::Usage& tenant = tenants_[state.request.tenant.name];
  ++tenant.requests;
  tenant.tokens += state.text_max;
}

void Engine::Discharge(StreamId stream) {
  const auto found = live_.find(stream);
  const auto tenant = tenants_.find(found->second.tenant);
  tokens_charged_ -= found->second.tokens_charged;
  tenant->second.tokens -= found->second.tokens_charged;
  if (--tenant->second.requests == 0) tenants_.erase(tenant);
  live_.erase(found);
}

void Engine::Cancel(StreamId stream) {
  const std::lock_guard lock(mutex_);
  const auto found = live_.find(stream);
  if (found == live_.end() || found->second.cancelled) return;
  found->second.cancelled = true;
  cancels_.push_back(stream);
  work_.notify_one();
}

std::vector<Event> Engine::Poll(int64_t max) {
  std::vector<Event> events = events_.Take(max);
  const auto ended =
      std::count_if(events.begin(), events.end(), [](const Event& e) { return e.finish != Finish::kNone; });
  if (ended > 0) {
    const std::lock_guard lock(mutex_);
    open_streams_ -= ended;
  }
  return events;
}

EngineStats Engine::Stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats out = stats_;
  out.rejected = rejected_;
  out.tokens_admitted = tokens_charged_;
  out.open_streams = open_streams_;
  out.queued += static_cast<int64_t>(inbox_.size());
  out.draining = draining_;
  if (!live_.empty()) out.since_step_s = static_cast<double>(base::NowNs() - step_end_ns_) * 1e-9;
  return out;
}

void Engine::BeginDrain() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

bool Engine::Drain(base::Deadline deadline) {
  BeginDrain();
  if (WaitIdle(deadline)) return true;
  {
    const std::lock_guard lock(mutex_);
    cut_ = true;
    work_.notify_one();
  }
  WaitIdle(base::Deadline::AfterMs(kCutWaitMs));
  return false;
}

bool Engine::WaitIdle(base::Deadline deadline) {
  std::unique_lock lock(mutex_);
  return idle_.wait_until(lock, TimeOf(deadline), [this] { return settled_; });
}

void Engine::Close() {
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    stop_ = true;
    work_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void Engine::Loop() {
  pthread_setname_np(pthread_self(), "outrider-serve");
  while (TakeWork()) {
    try {
      core_.Step();
    } catch (const std::exception& e) {
      core_.FailStep(std::string("E_INTERNAL: ") + e.what());
    }
    PublishStats();
  }
  core_.EndAll(Finish::kCancelled, "E_CLOSED: the engine was closed");
  PublishStats();
}

// Moves the inbox into the core; sleeps while there is nothing to do at all. False: the engine is closed.
bool Engine::TakeWork() {
  std::vector<std::unique_ptr<RequestState>> added;
  std::vector<StreamId> cancels;
  bool cut = false, stop = false;
  {
    std::unique_lock lock(mutex_);
    if (core_.Idle())
      work_.wait_for(lock, std::chrono::milliseconds(kIdleWaitMs),
                     [this] { return stop_ || cut_ || !inbox_.empty() || !cancels_.empty(); });
    added.swap(inbox_);
    cancels.swap(cancels_);
    cut = std::exchange(cut_, false);
    stop = stop_;
  }
  for (auto& state : added) core_.Add(std::move(state));
  for (const StreamId stream : cancels) core_.End(stream, Finish::kCancelled, "");
  if (cut) core_.EndAll(Finish::kCancelled, "E_DRAINING: the time to finish was over");
  return !stop;
}

bool Engine::Tell(Event event) {
  const StreamId stream = event.stream;
  const bool last = event.finish != Finish::kNone;
  const bool taken = events_.Push(std::move(event));
  if (!last) return taken;
  const std::lock_guard lock(mutex_);
  Discharge(stream);
  return taken;
}

void Engine::PublishStats() {
  EngineStats stats = core_.Stats();
  const std::lock_guard lock(mutex_);
  stats_ = std::move(stats);
  settled_ = live_.empty();
  if (settled_) idle_.notify_all();
  step_end_ns_ = base::NowNs();
}

}  // namespace outrider::serve
