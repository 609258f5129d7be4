#pragma once
// The lane below autograd: sees every operator of forward, backward and optimizer. What it can predict it hands to the
// graph runner and returns placeholders; the rest runs at once on real values. Any operator may be new: the step goes on.
//
// One imperative thread (and the autograd device thread, which is ordered with it).

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "seam/path_tracker.h"
#include "seam/signature.h"
#include "seam/step_stats.h"
#include "seam/work.h"

namespace outrider::seam {

// Sees each device op with its operands and results; the outer lane's recorder.
class DeviceOpListener {
 public:
  virtual ~DeviceOpListener() = default;
  // Before the call: `call.args` and tensors are as the program passed them.
  virtual void BeforeDeviceOp(const Call& call) = 0;
  // After the call: `results` is what the program gets.
  virtual void AfterDeviceOp(const Call& call, c10::ArrayRef<c10::IValue> results) = 0;
  // The device op failed.
  virtual void DropDeviceOp() = 0;
};

struct InnerOptions {
  bool feed_clone = true;      // false: negative control
  bool version_replay = true;  // false: negative control
  bool flush_every_op = false;
  uint32_t flush_random_one_in = 0;  // 0: never
  uint64_t flush_random_seed = 1;
};

class InnerLane {
 public:
  enum class Mode {
    kPassThrough,  // between steps, or while the outer lane covers: inline on real values
    kActive,
  };

  InnerLane(WorkQueue& queue, StepStats& stats);

  void BeginStep(uint64_t step);
  void EndStep();
  // Takes over in the middle of a step that the outer lane gave up; what is left of it is no path.
  void Resume();
  void SetMode(Mode mode) { mode_ = mode; }
  Mode CurrentMode() const { return mode_; }
  // The rest of the step runs recorded, op by op, on the imperative thread.
  void RecordRest() { record_rest_ = true; }
  void ForceDivergenceAt(int64_t op_index) { force_at_ = op_index; }
  void SetListener(DeviceOpListener* listener) { listener_ = listener; }
  InnerOptions& Options() { return options_; }
  PathTracker& Paths() { return paths_; }
  SignatureTable& Signatures() { return signatures_; }
  int64_t OpIndex() const { return op_index_; }
  // The device whose work is deferred. On an accelerator, CPU operators run at once.
  void SetComputeDevice(c10::Device device);
  c10::Device ComputeDevice() const { return compute_device_; }
  // The accelerator that operators have worked on since the last call, if any.
  std::optional<c10::Device> TakeSeenDevice() { return std::exchange(seen_device_, std::nullopt); }

  bool TakesApart(const c10::OperatorHandle& op) const;
  // The boxed handler. `next` are the keys below the lane's own.
  void OnOp(const c10::OperatorHandle& op, c10::DispatchKeySet next, Stack* stack);

  // The debugging modes: complete pending work now, if the mode says so.
  bool DebugFlushDue();

 private:
  enum class Route {
    kDefer,
    kInline,    // on the host thread, on real values
    kHost,      // the same, and no device work of this program
    kTransfer,  // the same, between host and device
  };

  struct Flow {  // one operator on its way through the lane
    Call call;
    Signature* signature = nullptr;
    const ShapeClass* shapes = nullptr;
    c10::SmallVector<bool, 12> clone;  // tensor slots that enter as a private copy
    trace::NodeId node;
    bool synchronous = false;
  };

  void Collect(OpInfo& info, Stack* stack, Call& call);
  bool LeavesDevice(const Call& call) const;
  Route Classify(Flow& flow);
  bool PrepareExternals(Flow& flow);
  bool IsView(const Flow& flow) const;
  static bool ViewsFit(const Flow& flow);

  void RunInline(Flow& flow, Route route, c10::DispatchKeySet next, Stack* stack);
  void CountInline(const OpInfo& info, Route route);
  static void KeepForStream(const Call& call);
  void Defer(Flow& flow, Stack* stack);
  void Record(Flow& flow, c10::DispatchKeySet next, Stack* stack);
  void RunRecorded(Flow& flow, c10::DispatchKeySet next, Stack& results);
  bool RecordOdd(Flow& flow, c10::DispatchKeySet next, Stack* stack, Stack& results);
  void LearnShapes(Flow& flow, c10::ArrayRef<at::Tensor> operands, std::unique_ptr<ShapeClass> shapes);

  void PackOperands(Flow& flow, Work& work, uint64_t sequence);
  at::Tensor OperandCopy(const c10::TensorImpl& tensor);
  // Pops the arguments and pushes the results. Fills `records` with the records of new storages, in output order.
  void ReturnResults(Flow& flow, Stack* stack, c10::SmallVectorImpl<RecordPtr>& records, uint64_t sequence);
  at::Tensor MakePlaceholder(Flow& flow, const OutputSpec& spec, c10::ArrayRef<at::Tensor> earlier, RecordPtr& record, uint64_t sequence);
  void StampWrites(Flow& flow);
  void BumpVersions(const Flow& flow);

  WorkQueue& queue_;
  StepStats& stats_;
  SignatureTable signatures_;
  PathTracker paths_;
  InnerOptions options_;
  DeviceOpListener* listener_ = nullptr;
  Work recorded_work_;

  Mode mode_ = Mode::kPassThrough;
  c10::Device compute_device_{c10::kCPU};
  std::optional<c10::Device> seen_device_;
  uint64_t step_ = 0;
  int64_t op_index_ = 0;
  int64_t force_at_ = -1;
  bool record_rest_ = false;
  uint64_t random_state_ = 1;
};

}  // namespace outrider::seam
