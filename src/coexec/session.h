#pragma once
// One enrolled imperative thread, its lanes, its graph runner. A process has at most one session at work; other threads
// run plainly.

#include <map>
#include <memory>
#include <string>
#include <thread>

#include "coexec/graph_runner.h"
#include "coexec/report.h"
#include "coexec/timeline.h"
#include "seam/autograd_watch.h"
#include "seam/inner_lane.h"
#include "seam/outer_lane.h"
#include "seam/settle.h"

namespace outrider::coexec {

enum class LaneChoice : int64_t { kAuto = 0, kInner = 1, kOuter = 2, kOff = 3 };

class Session final : public seam::Settler, public seam::AutogradWatcher {
 public:
  static Session& Get();

  // False: this thread is not (and does not become) the enrolled one, or the step is nested. A step that cannot be
  // co-executed, or may not be, is begun all the same; it runs plainly and leaves a row that says why.
  bool BeginStep(const std::string& name);
  void EndStep();
  // The step ends by an exception of the program.
  void AbortStep();
  // Claims the keys and verifies the mechanisms, once. False: nothing can be co-executed here.
  bool EnsureLoaded();
  bool InStep() const { return in_step_; }

  void Flush(seam::FlushReason reason);
  // Completes pending work for a child that will have no graph runner. An error stays where it is, for the next wait.
  void BeforeFork();
  // Before a numeric flag is set (`sets`), or generators, streams or events are used.
  void FlushForFlag(bool sets);
  // A numeric flag was set, after the flush before it; both texts are compared only.
  void FlagChanged(const std::string& flag, const std::string& value);
  void Leave();
  // Forgets traces, plans and rows.
  void Reset();
  // Joins the runner; nothing co-executes afterwards.
  void Shutdown();

  void SetOption(const std::string& key, int64_t value);
  int64_t GetOption(const std::string& key) const;
  std::string Describe() const;
  const Report& Rows() const { return report_; }
  void ClearRows() { report_.Clear(); }
  Timeline& Spans() { return timeline_; }
  seam::InnerLane& Inner() { return *inner_; }
  seam::OuterLane& Outer() { return *outer_; }
  // Lanes off for code that compiles or runs compiled kernels; nests.
  void Suspend();
  void Resume();
  void BuildsOwnNodes(const std::string& how);
  std::string Graph(const std::string& format, const std::string& lane);

  // --- called by the lanes' handlers ---
  static void InnerHandler(const c10::OperatorHandle& op, c10::DispatchKeySet keys, seam::Stack* stack);
  static void OuterHandler(const c10::OperatorHandle& op, c10::DispatchKeySet keys, seam::Stack* stack);

  // --- seam::AutogradWatcher; called by the binding, too ---
  seam::BackwardAnswer BackwardEnter(const torch::autograd::edge_list& roots, const std::vector<at::Tensor>& gradients,
                                     bool plain) override;
  void BackwardExit(bool completed) override;
  void RevealHistory(const at::Tensor& tensor, const std::string& how) override;
  void RevealView(const at::Tensor& tensor, const std::string& how) override;
  void RevealGraph(const std::string& how) override;

  // --- seam::Settler ---
  void WaitFor(uint64_t sequence) override;
  void SettleUncommitted(seam::StorageRecord& record, seam::Access access) override;
  void CountRawAccess(bool waited) override;

 private:
  Session();
  bool Load();
  void LearnEngineCallSites();
  void InstallForkHandlers();
  std::string WhyOff();
  void BeginTiming(const std::string& name);
  void FinishStep(bool aborted);
  void FinishPlainStep();
  const char* WhyNotOuter();
  void ApplyThreadState();
  void ApplyOptions();
  void ChooseDevice();
  void ApplyGraftMode();

  Timeline timeline_;
  GraphRunner runner_{timeline_};
  seam::StepStats stats_;
  Report report_;
  std::unique_ptr<seam::InnerLane> inner_;
  std::unique_ptr<seam::OuterLane> outer_;
  int suspended_ = 0;
  uint64_t first_step_ = 0;  // step numbers users see count from here
  std::map<std::string, int64_t> options_;

  bool loaded_ = false;
  bool usable_ = false;
  bool in_step_ = false;
  bool in_plain_step_ = false;
  int64_t outside_waits_ = 0;  // of the owner between two steps
  std::thread::id owner_;
  uint64_t step_ = 0;
  std::string name_;
  std::string note_;
  std::map<std::string, c10::Device> devices_;  // program -> what it computes on; the CPU where absent
  int64_t step_start_ns_ = 0;
  uint64_t previous_step_end_ = 0;  // last job of the step before
  seam::ThreadState thread_state_;
};

}  // namespace outrider::coexec
