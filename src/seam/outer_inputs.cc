// OuterLane: what an event takes from outside the step. Where the program owns the memory, a part of a storage is read
// where it is; only memory that may change unseen is copied.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_strided.h>

#include "seam/generators.h"
#include "seam/keys.h"
#include "seam/lazy_impl.h"
#include "seam/outer_lane.h"
#include "seam/storage_copy.h"

namespace outrider::seam {

using c10::TensorImpl;
using Code = Arg::Code;

// Every write to such a storage is seen before it happens, and it lies at one address for as long as its record lives. A
// storage that an event of this step may write to is left out: a device graph takes all its inputs at its beginning.
bool OuterLane::ReadWhereItIs(const TensorImpl& view) const {
  const StorageRecord* record = RecordOf(view);
  const ImplKind kind = KindOf(view);
  const bool gated = kind == ImplKind::kLazy || kind == ImplKind::kOuterPlaceholder;
  if (record == nullptr || !gated || record->is_token || record->synchronous.load(std::memory_order_acquire)) return false;
  if (view.numel() == 0 || view.device().type() != inner_.ComputeDevice().type()) return false;
  if (EndByte(Geometry::Of(view)) > record->real.nbytes()) return false;
  const bool bound_as_whole = record->outer_step == step_->id && record->outer_slot >= 0;
  return !bound_as_whole && step_->plan->slot_of_persistent.count(record) == 0;
}

// Memory that may change before the device ops run, or before a replay, is copied now; the replay gets the copy.
Operand OuterLane::ViewOperand(const at::Tensor& view, int external, LogEntry& entry) {
  Operand operand;
  const TensorImpl& impl = *view.unsafeGetTensorImpl();
  if (inner_.Options().feed_clone && ReadWhereItIs(impl)) {
    operand.record = RecordPtr::reclaim_copy(RecordOf(impl));
    operand.record->viewed_in_log = log_id_;
    log_reads_memory_ = true;
    operand.first = static_cast<size_t>(impl.storage_offset()) * impl.itemsize();
    operand.count = EndByte(Geometry::Of(impl)) - operand.first;
    return operand;
  }
  operand.tensor = inner_.Options().feed_clone ? PrivateCopy(impl) : AliasTensor(impl.unsafe_storage(), impl);
  stats_.copied_bytes += static_cast<int64_t>(operand.tensor.unsafeGetTensorImpl()->unsafe_storage().nbytes());
  entry.snapshots.emplace_back(external, operand.tensor);
  return operand;
}

void OuterLane::BindOperands(const OuterEvent& event, LogEntry& entry) {
  for (int id : newly_bound_) {
    const External& external = step_->plan->externals[id];
    ++stats_.feeds;
    if (external.snapshot || external.slot < 0) continue;
    Operand operand;
    operand.record = RecordPtr::reclaim_copy(RecordOf(*step_->bound[id].unsafeGetTensorImpl()));
    operand.record->outer_step = step_->id;
    operand.record->outer_slot = external.slot;
    step_->inputs.emplace_back(external.slot, std::move(operand));
  }
  for (const auto& snapshot : event.snapshots) {
    const at::Tensor& source = step_->bound[snapshot.external];
    TORCH_CHECK(source.defined(), "outrider: an input was not bound before it was needed");
    Operand operand = ViewOperand(source, snapshot.external, entry);
    step_->inputs.emplace_back(snapshot.slot, std::move(operand));
  }
}

void OuterLane::BeginLog() {
  ++log_id_;
  log_reads_memory_ = false;
  SetUncommittedWork(false);
}

// The program is about to change memory that a replay would read: what has been validated must not be replayed any more.
void OuterLane::LetGoOfLog(const std::string& what) {
  const auto lock = LockLaunch();
  if (mode_ != Mode::kCover || step_->log.empty()) return;
  if (step_->launched_events < step_->cursor && CommitAllowed()) {
    Launch(/*final=*/false);
  } else {
    Diverge(DivergenceReason::kRawAccess, "operators only", what, "use of memory or settings");
  }
}

// Random numbers of the CPU are drawn here and now, in the order of the program; the graph runner gets them as feeds.
void OuterLane::DrawNumbers(const OuterEvent& event, LogEntry& entry) {
  if (!event.host_draw) return;
  entry.generator_state = CpuGeneratorState();
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OuterPlan& plan = *step_->plan;
  for (int i = event.first_op; i < event.end_op; ++i) {
    const DeviceOp& op = plan.ops[i];
    if (!op.host_draw) continue;
    Stack stack;
    for (const Arg& arg : op.args) {
      if (arg.code == Code::kVariable) {  // filled, or only looked at for its geometry
        const Geometry& geometry = plan.variables[arg.id].geometry;
        stack.emplace_back(at::empty_strided(geometry.sizes, geometry.strides, at::TensorOptions().dtype(geometry.dtype)));
      } else {
        stack.push_back(arg.code == Code::kLate ? step_->late[arg.id] : arg.constant);
      }
    }
    op.info->handle.callBoxed(&stack);
    step_->draws.emplace_back(i, stack[0].toTensor());
    ++stats_.host_ops;
  }
}

}  // namespace outrider::seam
