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

void PathTracker::NoteBranch(const Signature& signature, int64_t op_index) {
  if (new_path_) return;  // the first departure of a step says it all
  new_path_ = true;
  const std::string& name = signature.Op().name;
  Divergence divergence{DivergenceReason::kNewPath, op_index, "end of the known path", name, "operator", UserFrame()};
  // The successor that comes closest; one of the same operator tells more than that another came first.
  for (const auto& edge : graph_.Successors(at_)) {
    const Signature& expected = table_->At(graph_.At(edge.to).signature);
    const bool same_operator = &expected.Op() == &signature.Op();
    if (same_operator || divergence.expected == "end of the known path") divergence.expected = expected.Op().name;
    if (!same_operator) continue;
    if (expected.id == signature.id) {
      divergence.reason = DivergenceReason::kWiring;
      divergence.field = "origin of a tensor";
    } else if (!(expected.Environment() == signature.Environment())) {
      divergence.reason = DivergenceReason::kEnv;
      divergence.field = "mode or setting";
    } else {
      divergence.reason = DivergenceReason::kArgument;
      divergence.field = "argument";
    }
    break;
  }
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
  NoteBranch(signature, op_index);
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
