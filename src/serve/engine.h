#pragma once
// Serves requests with one model: many at once, each as if it were alone. Thread-safe.
//
// One thread, `outrider-serve`, owned by the engine and stopped by Close, runs the steps. Submit and Cancel leave work
// in an inbox; events come out through a buffer that any thread may poll. Every request that Submit accepted gets
// exactly one event with a finish, also when the engine is closed.

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "sched/admission.h"
#include "serve/core.h"
#include "serve/event_buffer.h"
#include "serve/executor.h"
#include "serve/options.h"
#include "serve/request.h"
#include "serve/stats.h"

namespace outrider::serve {

class Engine {
 public:
  // `pregate`: null exactly for a dense model. Codes: E_OPTION an option that cannot be honoured.
  static base::Result<std::unique_ptr<Engine>> Make(std::unique_ptr<Executor> executor,
                                                    std::unique_ptr<Pregate> pregate, EngineOptions options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  tl::expected<StreamId, Rejection> Submit(Request request);
  // Ends a stream within one step; nothing happens when it has ended already.
  void Cancel(StreamId stream);

  // Events that wait, of `max` streams at most; does not wait for any.
  std::vector<Event> Poll(int64_t max);
  // Readable while events wait. Owned by the engine.
  int event_fd() const { return events_.fd(); }

  EngineStats Stats() const;
  // In use, defaults filled in.
  const EngineOptions& options() const { return options_; }
  const ModelShape& shape() const { return executor_->shape(); }

  // From now on Submit refuses.
  void BeginDrain();
  // BeginDrain, then waits for the requests to end; cancels those that have not by the deadline. True: none was.
  bool Drain(base::Deadline deadline);
  // False when requests are left at the deadline.
  bool WaitIdle(base::Deadline deadline);
  // Cancels what is left and stops the thread. Events stay to be polled.
  void Close();

 private:
  struct LiveStream {
    int64_t tokens_charged = 0;
    std::string tenant;
    bool cancelled = false;
  };

  Engine(std::unique_ptr<Executor> executor, std::unique_ptr<Pregate> pregate, EngineOptions options);
  void Loop();
  bool TakeWork();
  bool Tell(Event event);
  void PublishStats();
  tl::expected<void, Rejection> CheckRoom(const Request& request, int64_t text_max) const;
  void Charge(const RequestState& state);
  void Discharge(StreamId stream);

  const std::unique_ptr<Executor> executor_;
  const std::unique_ptr<Pregate> pregate_;
  const EngineOptions options_;
  EventBuffer events_;
  EngineCore core_;  // of the engine's thread

  mutable std::mutex mutex_;
  std::condition_variable work_, idle_;
  std::vector<std::unique_ptr<RequestState>> inbox_;       // guarded by mutex_, as all below
  std::vector<StreamId> cancels_;                          // of live streams, each once
  std::unordered_map<StreamId, LiveStream> live_;          // last event not told yet
  int64_t open_streams_ = 0;                               // last event not polled yet
  int64_t tokens_charged_ = 0;                             // of the live streams
  std::unordered_map<std::string, sched::Usage> tenants_;  // likewise; those that have any
  StreamId next_id_ = 1;
  bool settled_ = true;                                 // no live stream, and the stats say so
  bool draining_ = false, cut_ = false, stop_ = false;  // cut: what is left is cancelled
  EngineStats stats_;
  std::map<std::string, int64_t> rejected_;
  int64_t step_end_ns_ = 0;

  std::thread thread_;  // the last member: it uses the others
};

}  // namespace outrider::serve
