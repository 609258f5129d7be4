#include "seam/path_tracker.h"

#include "seam/gil.h"
#include "seam/storage_record.h"

namespace outrider::seam {
namespace {

// The first step creates records and optimizer state; what it shows is no path that comes back.
constexpr uint64_t kWarmUpSteps = 1;

}  // namespace

void PathTracker::BeginStep(uint64_t step) {
  step_ = step;
  at_ = trace::TraceGraph::kStart;
  growing_ = step > kWarmUpSteps;
  new_path_ = false;
}

void PathTracker::EndStep() {
  if (!growing_) return;
  if (at_ != trace::TraceGraph::kStart) graph_.EndPath(at_);
  graph_.Evict();
}

Signature& PathTracker::Locate(const Call& call, const Env& env, SignatureTable& table) {
  table_ = &table;
  for (const auto& edge : graph_.Successors(at_)) {
    Signature& expected = table.At(graph_.At(edge.to).signature);
    if (expected.Matches(call, env)) return expected;
  }
  return table.Intern(call, env);
}

PathTracker::Inputs PathTracker::Wiring(const Call& call) const {
  Inputs inputs;
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    auto& input = inputs.emplace_back();
    const auto* tensor = call.tensors[i];
    if (tensor == nullptr) continue;
    input.origin = trace::Origin::kFeed;
    const auto* record = RecordOf(*tensor);
    if (record == nullptr) continue;
    if (record->writer_step == step_ && record->writer.IsValid()) {
      input = {trace::Origin::kValue, record->writer, record->writer_output};
    } else if (record->created_step < step_ &&
               (call.writes[i] || (record->first_external_step != 0 && record->first_external_step < step_))) {
      input.origin = trace::Origin::kPersistent;
      input.index = record->persistent_id;
    }
  }
  return inputs;
}

void PathTracker::NoteBranch(const Call& call, int64_t op_index) {
  if (new_path_) return;  // the first departure of a step says it all
  new_path_ = true;
  const auto successors = graph_.Successors(at_);
  Divergence divergence;
  divergence.reason = DivergenceReason::kNewPath;
  divergence.event = op_index;
  divergence.expected = successors.empty() || table_ == nullptr
                            ? std::string("end of the known path")
                            : const_cast<SignatureTable*>(table_)->At(graph_.At(successors.front().to).signature).Op().name;
  divergence.got = call.info->name;
  divergence.field = divergence.expected == divergence.got ? "wiring or structural argument" : "operator";
  divergence.where = UserFrame();
  stats_.Diverge(std::move(divergence));
}

trace::NodeId PathTracker::Advance(const Call& call, const Signature& signature, size_t outputs, int64_t op_index) {
  if (!growing_) return {};
  const Inputs inputs = Wiring(call);
  const std::span<const trace::Input> wiring(inputs.data(), inputs.size());
  for (const auto& edge : graph_.Successors(at_)) {
    if (graph_.At(edge.to).signature == signature.id && graph_.Accepts(edge.to, wiring)) {
      const auto from = at_;
      at_ = edge.to;
      graph_.Follow(from, at_);
      return at_;
    }
  }
  NoteBranch(call, op_index);
  if (const auto join = graph_.FindJoin(at_, signature.id, wiring)) {
    graph_.Join(at_, *join, wiring);
    at_ = *join;
  } else {
    at_ = graph_.Branch(at_, signature.id, wiring, static_cast<uint16_t>(outputs));
  }
  return at_;
}

void PathTracker::MarkFetched(const c10::TensorImpl& tensor) {
  const auto* record = RecordOf(tensor);
  if (growing_ && record != nullptr && record->writer_step == step_ && record->writer.IsValid()) graph_.MarkFetched(record->writer);
}

}  // namespace outrider::seam
