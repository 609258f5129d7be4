#pragma once
// Follows the inner lane's operators through its TraceGraph: where each value came from, which branch was taken.

#include <c10/util/SmallVector.h>

#include "seam/signature.h"
#include "seam/step_stats.h"
#include "trace/trace_graph.h"

namespace outrider::seam {

class PathTracker {
 public:
  explicit PathTracker(StepStats& stats) : stats_(stats) {}

  void BeginStep(uint64_t step);
  void EndStep();
  // The rest of the step is not followed.
  void PauseGrowth() { growing_ = false; }

  // The signature of the call: the one the graph expects here, else interned.
  Signature& Locate(const Call& call, const Env& env, SignatureTable& table);
  // Moves the cursor over the call, growing the graph where it is new. Invalid id while the graph is not grown.
  trace::NodeId Advance(const Call& call, const Signature& signature, size_t outputs, int64_t op_index);
  void MarkFetched(const c10::TensorImpl& tensor);

  void Reset() { graph_ = trace::TraceGraph(); }
  const trace::TraceGraph& Graph() const { return graph_; }
  bool NewPathThisStep() const { return new_path_; }

 private:
  using Inputs = c10::SmallVector<trace::Input, 12>;
  Inputs Wiring(const Call& call) const;
  void NoteBranch(const Signature& signature, int64_t op_index);

  StepStats& stats_;
  trace::TraceGraph graph_;
  trace::NodeId at_ = trace::TraceGraph::kStart;
  SignatureTable* table_ = nullptr;  // of the latest call
  uint64_t step_ = 0;
  bool growing_ = false;
  bool new_path_ = false;
};

}  // namespace outrider::seam
