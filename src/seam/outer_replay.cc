// OuterLane: a diverging step becomes the eager step it would have been. No effect of the uncommitted events remains;
// the real operators run on the logged arguments, and living placeholders take over what they produce.

#include <ATen/autocast_mode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/variable.h>

#include "seam/generators.h"
#include "seam/gil.h"
#include "seam/keys.h"
#include "seam/outer_lane.h"
#include "seam/settle.h"
#include "seam/storage_copy.h"

namespace outrider::seam {
namespace {

// The autograd meta of a tensor, taken out of it: history, output number and view relation move as one. TensorImpl has no
// release for it, and a copy would leave two owners of one gradient accumulator; an explicit instantiation may name it.
using MetaMember = std::unique_ptr<c10::AutogradMetaInterface> c10::TensorImpl::*;
MetaMember AutogradMetaMember();

template <MetaMember member>
struct MetaAccess {
  friend MetaMember AutogradMetaMember() { return member; }
};
template struct MetaAccess<&c10::TensorImpl::autograd_meta_>;

std::unique_ptr<c10::AutogradMetaInterface> TakeAutogradMeta(c10::TensorImpl& tensor) { return std::move(tensor.*AutogradMetaMember()); }

// Puts the bytes that an event saw back into the program's own memory for the time of its replay.
class ForeignMemory {
 public:
  ForeignMemory(const OuterStep& step, const LogEntry& entry) {
    for (const auto& [external, seen] : entry.snapshots) {
      // An alias without version ties: autograd must not take this for a change.
      const auto& impl = *step.bound[external].unsafeGetTensorImpl();
      const auto* record = RecordOf(impl);
      const at::Tensor tensor = AliasTensor(record != nullptr ? record->real : impl.unsafe_storage(), impl);
      saved_.emplace_back(tensor, tensor.clone());
      tensor.copy_(seen);
    }
  }
  ~ForeignMemory() {
    for (auto& [tensor, now] : saved_) tensor.copy_(now);
  }
  ForeignMemory(const ForeignMemory&) = delete;
  ForeignMemory& operator=(const ForeignMemory&) = delete;

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> saved_;
};

// Where eager code dispatches: no lane, nothing a caller of the handler may have switched off.
class CleanDispatch {
 public:
  CleanDispatch()
      : guard_(c10::default_included_set, c10::default_excluded_set | c10::DispatchKeySet(Keys().inner) | c10::DispatchKeySet(Keys().outer)) {}

 private:
  c10::impl::ForceDispatchKeyGuard guard_;
};

}  // namespace

void OuterLane::RestorePreimages() {
  for (const auto& [slot, preimage] : step_->table->preimages) OverwriteStorage(preimage.target, preimage.copy);
  step_->table->preimages.clear();
  for (const auto& [generator, offset] : step_->table->generator_offsets) SetGeneratorOffset(generator, offset);
  step_->table->generator_offsets.clear();
}

void OuterLane::Adopt(int value, const at::Tensor& result) {
  const int slot = step_->plan->values[value].slot;
  if (c10::Storage& token = step_->tokens[slot]) {
    const c10::Storage& real = result.unsafeGetTensorImpl()->unsafe_storage();
    StorageRecord* record = RecordOf(token.unsafeGetStorageImpl());
    // A view of a committed value lies in the token itself.
    if (record != nullptr && real.unsafeGetStorageImpl() != token.unsafeGetStorageImpl()) {
      record->real = real;
      record->borrowed = false;
    }
  }
  OuterPlaceholder* placeholder = step_->live[value];
  if (placeholder == nullptr) return;
  c10::TensorImpl& impl = *result.unsafeGetTensorImpl();
  placeholder->ReplaceStorage(impl.unsafe_storage());
  placeholder->set_storage_offset(impl.storage_offset());
  if (!impl.is_inference()) placeholder->set_version_counter(impl.version_counter());
  placeholder->set_autograd_meta(TakeAutogradMeta(impl));
}

void OuterLane::ReplayBackward(const OuterEvent& event, LogEntry& entry) {
  const size_t roots = event.args.size() / 2;
  torch::autograd::edge_list edges;
  std::vector<at::Tensor> gradients;
  for (size_t i = 0; i < roots; ++i) {
    edges.push_back(torch::autograd::impl::gradient_edge(entry.args[i].toTensor()));
    gradients.push_back(entry.args[roots + i].toTensor());
  }
  {
    GilRelease without_lock;
    RunBackward(edges, gradients, /*keep_graph=*/false, /*create_graph=*/false);
  }
  for (size_t i = 0; i < event.leaves.size(); ++i) {
    if (event.leaf_values[i] < 0) continue;
    const at::Tensor leaf(step_->plan->externals[event.leaves[i]].tensor.lock());
    const at::Tensor real = leaf.grad();
    Adopt(event.leaf_values[i], real);
    if (step_->live[event.leaf_values[i]] != nullptr) leaf.mutable_grad() = entry.gradients[i];
  }
}

void OuterLane::ReplayEvent(LogEntry& entry) {
  const OuterEvent& event = step_->plan->events[entry.event];
  const c10::InferenceMode as_recorded(event.env.inference);
  event.env.Restore();
  ++stats_.replayed_events;
  const ForeignMemory as_it_was(*step_, entry);
  if (event.backward) {
    ReplayBackward(event, entry);
    return;
  }
  if (entry.generator_state) SetCpuGeneratorState(*entry.generator_state);
  Stack stack(entry.args.begin(), entry.args.end());
  event.info->handle.callBoxed(&stack);
  for (size_t i = 0; i < event.outputs.size(); ++i) {
    const auto& output = event.outputs[i];
    if (output.kind == OuterOutput::Kind::kValue) Adopt(output.value, stack[i].toTensor());
    if (output.kind != OuterOutput::Kind::kList) continue;
    const auto list = stack[i].toListRef();
    for (size_t j = 0; j < output.values.size(); ++j) Adopt(output.values[j], list[j].toTensor());
  }
}

// Edges to the dummy node may be in other hands: a caller of the engine, a custom function about to be applied.
void OuterLane::HandHistoryOn() {
  size_t ours = 1;  // committed values keep theirs
  for (const OuterPlaceholder* placeholder : step_->live) {
    const auto* meta = placeholder == nullptr ? nullptr : static_cast<const torch::autograd::AutogradMeta*>(placeholder->autograd_meta());
    if (meta != nullptr && meta->grad_fn_.get() == dummy_.get()) ++ours;
  }
  if (static_cast<size_t>(dummy_.use_count()) == ours) return;
  torch::autograd::edge_list real(dummy_->num_inputs());
  for (size_t value = 0; value < real.size(); ++value) {
    OuterPlaceholder* placeholder = step_->live[value];
    if (placeholder == nullptr || !NeedsHistory(step_->plan->values[value])) continue;
    const at::Tensor tensor(c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>::reclaim_copy(placeholder));
    auto edge = torch::autograd::impl::gradient_edge(tensor);
    if (edge.function.get() != dummy_.get()) real[value] = std::move(edge);
  }
  dummy_->HandOn(*step_->plan, std::move(real));
}

void OuterLane::Replay() {
  queue_.WaitAll();
  SetUncommittedWork(false);
  RestorePreimages();
  const OuterPlan& plan = *step_->plan;
  std::vector<LogEntry> log = std::move(step_->log);
  step_->log.clear();
  for (auto it = log.rbegin(); it != log.rend(); ++it) {
    const OuterEvent& event = plan.events[it->event];
    BumpVersions(event, *it, -1);
    for (size_t i = 0; i < event.leaves.size(); ++i) {
      const at::Tensor leaf(plan.externals[event.leaves[i]].tensor.lock());
      if (event.leaf_values[i] >= 0) leaf.mutable_grad() = at::Tensor();
      if (event.leaf_bumps[i] == 0) continue;
      auto counter = leaf.grad().unsafeGetTensorImpl()->version_counter();
      counter.set_version(counter.current_version() - event.leaf_bumps[i]);
    }
  }
  const Env outside = Env::Current();
  const at::Tensor generator_now = CpuGeneratorState();
  {
    HandlerDepth depth;
    const c10::InferenceMode normal_mode(false);  // the divergence may have been found inside an inference block
    CleanDispatch clean;
    for (auto& entry : log) ReplayEvent(entry);
    HandHistoryOn();
    outside.Restore();
  }
  SetCpuGeneratorState(generator_now);
  if (!outside.autocast_cpu && !outside.autocast_cuda) at::autocast::clear_cache();
}

}  // namespace outrider::seam
