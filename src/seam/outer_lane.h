#pragma once
// The lane above autograd. A step whose path is known builds no autograd graph and dispatches nothing: its host events are
// validated one by one against a plan, and the device ops behind them run on the graph runner in a few large parts.
//
// What it may not do wrong: any difference is found before an effect that could not be taken back. Until a commit, the
// validated events are logged with their arguments; divergence replays the log through the real operators with autograd.
// A commit is possible where no living tensor still needs history that only a replay could build.

#include <torch/csrc/autograd/function.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "plan/read_habit.h"
#include "plan/rare_step_habit.h"
#include "plan/refusal_habit.h"
#include "seam/autograd_watch.h"
#include "seam/inner_lane.h"
#include "seam/outer_dummy_node.h"
#include "seam/outer_part.h"
#include "seam/outer_plan.h"
#include "seam/outer_recorder.h"
#include "seam/outer_step.h"
#include "seam/settle.h"
#include "seam/torch_adapter.h"

namespace outrider::seam {

struct OuterOptions {
  bool cut_at_backward = true;
  // Parts may go before a BACKWARD or the end of the step: when the graph runner has nothing to do, or (tests) always.
  enum class Early { kNever = 0, kWhenIdle = 1, kAlways = 2 };
  Early early = Early::kWhenIdle;
  // Of memory that others may write to, in one covered step: its copies are held until the step is over.
  int64_t copied_bytes_max = int64_t{1} << 30;
};

class OuterLane {
 public:
  enum class Mode { kOff, kRecord, kCover, kDiverged };

  OuterLane(WorkQueue& queue, StepStats& stats, InnerLane& inner);
  ~OuterLane();

  // --- step boundaries ---
  // `why_not`: empty, or the reason code and text why the outer lane may not be used.
  Mode BeginStep(uint64_t step, const std::string& program, const std::string& why_not);
  void EndStep();
  void AbortStep();
  Mode CurrentMode() const { return mode_; }
  DeviceOpListener* Listener() { return recorder_.get(); }
  const std::string& Note() const { return note_; }
  void ForceDivergenceAt(int64_t event) { force_at_ = event; }
  int64_t EventIndex() const { return step_ ? step_->cursor : 0; }
  // Forgets traces and plans; the queue must be idle.
  void Reset();
  // The same for one program.
  void Forget(const std::string& program);
  OuterOptions& Options() { return options_; }

  // --- the program's events ---
  void OnEvent(const c10::OperatorHandle& op, c10::DispatchKeySet next, Stack* stack);
  BackwardAnswer BackwardEnter(const torch::autograd::edge_list& roots, const std::vector<at::Tensor>& gradients, bool plain);
  void BackwardExit(bool completed);
  // The dummy node was applied by the engine. True: handled; false: the step has diverged and the real root must run.
  bool BackwardFromNode(OuterStep* step, const std::vector<at::Tensor>& gradients, bool plain);

  // Everything validated so far takes effect; the caller then waits for the queue.
  void LaunchPending();
  // The program is about to look at or hook into the history of a tensor: it must be the real one.
  void RevealHistory(const at::Tensor& tensor, const std::string& how);
  void RevealGraph(const std::string& how);
  // The program asks what a tensor is a view of. Of a tensor inside an operator there is nothing to show yet.
  void RevealView(const at::Tensor& tensor, const std::string& how);
  // The program is about to build autograd nodes of its own, which must hang on real history.
  void BuildsOwnNodes(const std::string& how);
  // Bytes are wanted that may belong to validated events not launched yet, or not committed.
  void SettleUncommitted(StorageRecord& record, Access access);
  // Foreign code is about to run on the program's tensors, or what a replay would read or run under is about to change:
  // nothing validated may be left to replay.
  void CommitOrDiverge(DivergenceReason reason, const std::string& what);
  // The program waits for job `sequence`. Imperative thread.
  void NoteWait(uint64_t sequence) { waited_ |= sequence > last_before_step_; }
  bool HasUnlaunched() const { return mode_ == Mode::kCover && step_ != nullptr && step_->launched_events < step_->cursor; }

  // Plans and recordings, for reports: "events 212, device ops 1130, ..." per plan.
  std::string Describe() const;
  std::vector<const OuterPlan*> Plans() const;

 private:
  // The older of the two recordings of a path's first plan. Its tensors show which later ones are no state of the program.
  struct Witness {
    std::unique_ptr<OuterTrace> recording;
    int plans = 1;  // made of this path
  };
  struct Program {  // what is known of the steps with one name
    std::vector<std::shared_ptr<const OuterPlan>> plans;   // most recently taken first
    std::vector<std::unique_ptr<OuterTrace>> recordings;   // not yet confirmed, newest last
    std::vector<Witness> witnesses;                        // of paths that plans were made of
    uint64_t record_until = 0;   // recording was asked for up to this step
    uint64_t steps = 0;          // of this program
    plan::RareStepHabit rare;    // counts them
    uint64_t pause_until = 0;    // recording or covering did not pay; not before this step
    uint64_t pause_steps = 8;
    int fruitless = 0;           // recordings in a row without a plan
    plan::RefusalHabit refusals;
    int clean = 0;               // covered steps in a row without divergence
    plan::ReadHabit habit;
    bool small_parts = false;    // device graphs are cut so that the device starts early
    int part_changes = 0;        // how often that has changed; each time all is captured anew
    int replayed_ends = 0;       // steps in a row that fitted to their end and were replayed there
    std::string why_not;
    // The step looks at another place of an input each time (data[i]): such views are made at once, and what they show
    // enters as an input.
    bool views_move = false;
  };

  void StartCovering();
  void RetirePlans();

  // Recording (outer_recording.cc).
  void StartRecording();
  void FinishRecording();
  void Pause(Program& program) const;
  bool FollowsKnownPlan(const OuterTrace& trace);
  bool FollowsWitness(OuterTrace& trace);
  void KeepWitness(std::unique_ptr<OuterTrace> recording);
  void AddPlan(Program& program, std::shared_ptr<const OuterPlan> plan);
  void RecordEvent(OpInfo& info, c10::DispatchKeySet next, Stack* stack);

  // Validation (outer_match.cc).
  bool IsValue(const at::Tensor& tensor) const;  // of this step
  bool PreparesInput(const OpInfo& info, const Stack& stack) const;
  bool IsHostOnly(const OpInfo& info, const Stack& stack) const;
  void CoverEvent(OpInfo& info, c10::DispatchKeySet next, Stack* stack);
  bool MatchHere(OpInfo& info, const c10::IValue* args);
  bool CopiesTooMuch(const OuterEvent& event) const;
  bool MatchEvent(const OuterEvent& event, const c10::IValue* args);
  bool MatchArg(const Arg& arg, const c10::IValue& value);
  bool MatchLateNumber(const Arg& arg, const c10::IValue& value);
  bool MatchTensor(const Arg& arg, const at::Tensor& tensor);
  bool MatchExternal(int id, const at::Tensor& tensor);
  bool BindFeed(int id, const at::Tensor& tensor);
  void Unbind(size_t keep);
  bool HasWhatNeeds(const OuterPlan& other) const;
  StorageRecord* FedTo(int slot) const;
  void FeedAgain(const OuterPlan& before);
  bool SwitchPlan(const std::function<bool(const OuterPlan&)>& fits);
  void ReturnEvent(const OuterEvent& event, Stack* stack, LogEntry& entry);
  void BumpVersions(const OuterEvent& event, const LogEntry& entry, int direction);
  // Inputs: copied, or read where they are.
  void BindOperands(const OuterEvent& event, LogEntry& entry);
  Operand ViewOperand(const at::Tensor& view, int external, LogEntry& entry);
  bool ReadWhereItIs(const c10::TensorImpl& view) const;
  void KeepNumbers(const OuterEvent& event, LogEntry& entry) const;
  void DrawNumbers(const OuterEvent& event, LogEntry& entry);
  bool IsBarrier(const OpInfo& info, const Stack& stack) const;
  bool LeavesDevice(const OpInfo& info, const Stack& stack) const;

  // Why an event did not fit (outer_divergence.cc).
  Divergence Diagnose(const OpInfo& info, const c10::IValue* args);
  Divergence DiagnoseArgument(const Arg& arg, const c10::IValue& value, const std::string& name);
  Divergence DiagnoseTensor(const Arg& arg, const at::Tensor& tensor, const std::string& name) const;
  std::string OriginOf(int value) const;

  // Asks about metadata and gets no tensor.
  static bool IsQuestion(const OpInfo& info) { return info.metadata_only && info.odd_returns; }

  // What the program gets (outer_placeholder.cc). `args`: of the event that returns the value; null for a gradient.
  at::Tensor MakePlaceholder(int value, const Stack* args);
  c10::Storage StorageOf(const OuterValue& value, Geometry& geometry);
  void BecomeView(c10::TensorImpl& impl, int value, const Stack* args);
  torch::autograd::Edge HistoryOf(int value) const { return {dummy_, static_cast<uint32_t>(value)}; }

  // Backward (outer_backward.cc).
  bool CoverBackward(const std::vector<int>& root_values, const std::vector<at::Tensor>& gradients);
  // The values that the edges stand for; nothing where one of them is no living value of this step.
  std::optional<std::vector<int>> ValuesOf(const torch::autograd::edge_list& edges) const;
  bool LeavesMatch(const OuterEvent& event) const;
  at::Tensor LeafOf(const OuterEvent& event, size_t index) const;

  // Effects (outer_launch.cc). Who launches may need the interpreter lock, so nobody waits for the mutex while holding it.
  std::unique_lock<std::recursive_mutex> LockLaunch();
  bool CommitAllowed() const;
  bool IsConsumed(const OuterValue& value) const;
  bool LogAloneHolds(size_t not_consumed) const;
  size_t KnownEdges() const;
  // `undoable`: never a commit, even where one is allowed.
  void Launch(bool final, bool undoable = false);
  void CommitAll();
  void BeforeReshaping(const OpInfo& info, const Stack& stack);
  bool UsedFromHere(const StorageRecord& record) const;
  enum class EarlyLaunch { kNone, kUndoable, kCommitted };
  EarlyLaunch EarlyLaunchDue() const;
  void ChooseParts();
  void Commit();
  void StampUses(OuterPart& part, const RangeFacts& facts, uint64_t sequence);
  void Diverge(DivergenceReason reason, const std::string& expected, const std::string& got, const std::string& field);
  void LeaveCover();
  void LeaveStep();
  std::shared_ptr<OuterTable> FreshTable();

  // Recovery (outer_divergence.cc).
  void Replay();
  void RestorePreimages();
  void ReplayEvent(LogEntry& entry);
  void ReplayBackward(const OuterEvent& event, LogEntry& entry);
  void Adopt(int value, const at::Tensor& result);
  void HandHistoryOn();

  WorkQueue& queue_;
  StepStats& stats_;
  InnerLane& inner_;
  OuterOptions options_;
  std::map<std::string, Program> programs_;
  std::vector<std::shared_ptr<const OuterPlan>> retired_;  // until the queue is idle
  std::recursive_mutex launch_mutex_;  // a foreign thread may launch what the imperative thread has validated

  Mode mode_ = Mode::kOff;
  Program* program_ = nullptr;
  uint64_t step_number_ = 0;
  std::unique_ptr<OuterRecorder> recorder_;
  std::shared_ptr<OuterStep> step_;
  NodePtr<DummyNode> dummy_;
  std::string note_;
  StepScratch scratch_;
  std::vector<std::shared_ptr<OuterTable>> tables_;
  std::vector<int> newly_bound_;
  uint64_t log_id_ = 1;            // the step's log since the last commit
  int64_t force_at_ = -1;
  uint64_t last_before_step_ = 0;  // the last job before the current step
  bool waited_ = false;            // the program has waited for one behind it
  bool diverge_requested_ = false;
  std::thread::id thread_;         // the imperative thread
  size_t edges_in_hand_ = 0;       // to the dummy node, of the caller of a backward pass that fits
};

}  // namespace outrider::seam
